"""Requests that a server has to refuse without failing: the same ones for the same seed."""

from __future__ import annotations

import io
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

PATH = "/v1/audio/transcriptions"
_BOUNDARY = b"boundary"
_FORM_TYPE = b"multipart/form-data; boundary=" + _BOUNDARY
_GIGABYTE = 1_000_000_000
_ANSWER_BYTES = 1_000_000
_FIRST_SERVER_ERROR = 500
_NAMES = (
    "../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "a\x00b", "%2e%2e%2f", "${HOME}", "`id`",
    "con", "\u202egnp.wav", "x" * 5000, "", "\r\nset-cookie: a=b", "<script>alert(1)</script>",
)  # fmt: skip
_VALUES = (
    "", "nan", "inf", "-1", "1e400", "0x10", "true", "[]", "{}", "null", "\x00", "\ud7ff",
    "'; drop", "9" * 400, "verbose_json", "srt", "en", "word",
)  # fmt: skip
_FIELDS = (
    "model", "language", "prompt", "temperature", "response_format", "stream", "file",
    "timestamp_granularities[]", "include[]", "unknown", "",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A server, a model of it, a clip that it takes, and the token that it wants."""

    host: str
    port: int
    model: str
    clip: bytes
    token: str = ""
    patience_seconds: float = 3.0


@dataclass(frozen=True)
class Hostile:
    """A request as bytes, and what it is called."""

    name: str
    content: bytes


def hostile_requests(target: Target, seed: int, count: int) -> Iterator[Hostile]:
    """Yield `count` requests of all kinds."""
    makers = _makers()
    for number in range(count):
        random_ = random.Random(f"{seed} {number}")  # noqa: S311
        make = makers[number % len(makers)]
        name = make.__name__.strip("_").replace("_", " ")
        yield Hostile(name, make(target, random_))


def answered_statuses(target: Target, seed: int, count: int) -> dict[str, Counter[str]]:
    """Send them; return how often each kind was answered with which status, or closed."""
    statuses: dict[str, Counter[str]] = {}
    for request in hostile_requests(target, seed, count):
        statuses.setdefault(request.name, Counter())[answer_to(target, request.content)[0]] += 1
    return statuses


def answer_to(target: Target, content: bytes) -> tuple[str, bytes]:
    """Return the status of the answer, "closed" without one, and all of it.

    Where none comes soon the client goes away, as the request may have no end.
    """
    received = b""
    address = (target.host, target.port)
    with socket.create_connection(address, timeout=target.patience_seconds) as opened:
        # It may have answered and closed before all was sent.
        with suppress(ConnectionError):
            opened.sendall(content)
        with suppress(ConnectionError, TimeoutError):
            while len(received) < _ANSWER_BYTES and (piece := opened.recv(65_536)):
                received += piece
    words = received.split(b" ", 2)
    return (words[1].decode("latin-1") if len(words) > 1 else "closed"), received


def is_failure(status: str) -> bool:
    """Return whether an answer is the server's fault."""
    return status.isdecimal() and int(status) >= _FIRST_SERVER_ERROR


Maker = Callable[[Target, random.Random], bytes]


def _makers() -> tuple[Maker, ...]:
    return (
        _no_multipart, _empty_body, _a_gigabyte_announced, _a_body_that_ends_early, _a_flac_bomb,
        _a_zip, _a_wrong_token, _names_of_paths, _long_headers, _random_bytes_as_audio,
        _a_spoiled_wav, _an_absurd_wav, _a_spoiled_form, _odd_fields, _many_fields, _odd_charset,
        _broken_chunks,
        _an_odd_method, _an_odd_path, _no_http, _no_boundary, _two_files, _an_empty_file,
    )  # fmt: skip


def _request(
    target: Target, body: bytes, kind: bytes = _FORM_TYPE, *, head: bytes = b"", token: str = ""
) -> bytes:
    given = (token or target.token).encode("latin-1", "replace")
    lines = [
        f"POST {PATH} HTTP/1.1".encode(),
        b"host: x",
        b"connection: close",
        b"content-type: " + kind,
        b"authorization: Bearer " + given,
        f"content-length: {len(body)}".encode(),
    ]
    return b"\r\n".join(lines) + b"\r\n" + head + b"\r\n" + body


def _part(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    head = f"content-disposition: {disposition}".encode("utf-8", "replace")
    return b"--" + _BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def _form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + _BOUNDARY + b"--\r\n"


def _with_audio(target: Target, audio: bytes, *further: bytes) -> bytes:
    model = _part("model", target.model.encode())
    return _request(target, _form(model, *further, _part("file", audio, "a.wav")))


def _no_multipart(target: Target, random_: random.Random) -> bytes:
    kind = random_.choice(
        (b"application/json", b"text/plain", b"audio/wav", b"", b"multipart/mixed")
    )
    return _request(target, b'{"model": "a"}', kind)


def _empty_body(target: Target, random_: random.Random) -> bytes:
    return _request(target, b"")


def _no_boundary(target: Target, random_: random.Random) -> bytes:
    return _request(target, _form(), random_.choice((b"multipart/form-data", _FORM_TYPE[:-8])))


def _a_gigabyte_announced(target: Target, random_: random.Random) -> bytes:
    announced = random_.choice((_GIGABYTE, 2**63, 10**30))
    return _request(target, b"").replace(b"length: 0", f"length: {announced}".encode())


def _a_body_that_ends_early(target: Target, random_: random.Random) -> bytes:
    whole = _with_audio(target, target.clip)
    return whole[: random_.randrange(len(whole) // 2, len(whole))]


@cache
def _bomb() -> bytes:
    import numpy as np
    import soundfile

    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", 48_000, 8, format="FLAC") as file:
        silence = np.zeros((48_000, 8), np.int16)
        for _ in range(600):  # 461 MB of samples
            file.write(silence)
    return content.getvalue()


def _a_flac_bomb(target: Target, random_: random.Random) -> bytes:
    return _with_audio(target, _bomb())


def _a_zip(target: Target, random_: random.Random) -> bytes:
    return _with_audio(target, b"PK\x03\x04" + random_.randbytes(random_.randrange(2000)))


def _a_wrong_token(target: Target, random_: random.Random) -> bytes:
    token = random_.choice(("x", "\xe9" * 50, f"{target.token}x", "a b", "Bearer"))
    model = _part("model", target.model.encode())
    body = _form(model, _part("file", target.clip, "a.wav"))
    return _request(target, body, token=token)


def _names_of_paths(target: Target, random_: random.Random) -> bytes:
    name = random_.choice((target.model, *_NAMES))
    model = _part("model", name.encode("utf-8", "replace"))
    return _request(target, _form(model, _part("file", target.clip, random_.choice(_NAMES))))


def _long_headers(target: Target, random_: random.Random) -> bytes:
    head = b"x-long: " + b"a" * random_.choice((10_000, 60_000, 200_000)) + b"\r\n"
    return _request(target, _form(), head=head)


def _random_bytes_as_audio(target: Target, random_: random.Random) -> bytes:
    marks = (
        b"RIFF",
        b"fLaC",
        b"OggS",
        b"ID3\x03",
        b"\xff\xfb\x90\x00",
        b"FORM",
        b"caff",
        b".snd",
        b"",
    )
    return _with_audio(target, random_.choice(marks) + random_.randbytes(random_.randrange(5000)))


def _a_spoiled_wav(target: Target, random_: random.Random) -> bytes:
    clip = bytearray(target.clip)
    for _ in range(random_.randrange(1, 20)):
        clip[random_.randrange(random_.choice((44, len(clip))))] = random_.randrange(256)
    return _with_audio(target, bytes(clip[: random_.randrange(1, len(clip) + 1)]))


def _an_absurd_wav(target: Target, random_: random.Random) -> bytes:
    channels = random_.choice((0, 1, 255, 1024, 65_535))
    rate = random_.choice((0, 1, 3, 8000, 192_000, 2**31 - 1, 2**32 - 1))
    bits = random_.choice((0, 1, 8, 16, 24, 32, 64, 65_535))
    code = random_.choice((0, 1, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0xFFFE))
    form = struct.pack("<HHIIHH", code, channels, rate, 0, random_.choice((0, 1, 2, 65_535)), bits)
    data = bytes(random_.randrange(5000))
    announced = random_.choice((len(data), 0, 2**31 - 2, 2**32 - 1))
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data"
    head = b"RIFF" + struct.pack("<I", 2**32 - 1) + chunks + struct.pack("<I", announced)
    return _with_audio(target, head + data)


def _a_spoiled_form(target: Target, random_: random.Random) -> bytes:
    body = bytearray(_form(_part("model", target.model.encode()), _part("file", b"RIFF", "a.wav")))
    for _ in range(random_.randrange(1, 10)):
        body[random_.randrange(len(body))] = random_.randrange(256)
    return _request(target, bytes(body))


def _odd_fields(target: Target, random_: random.Random) -> bytes:
    parts = [
        _part(random_.choice(_FIELDS), random_.choice(_VALUES).encode("utf-8", "replace"))
        for _ in range(random_.randrange(1, 6))
    ]
    return _with_audio(target, target.clip, *parts)


def _many_fields(target: Target, random_: random.Random) -> bytes:
    count, size = random_.choice(((3000, 1), (3, 200_000), (50, 50)))
    return _with_audio(target, target.clip, *[_part("stream", b"a" * size)] * count)


def _odd_charset(target: Target, random_: random.Random) -> bytes:
    names = (
        "idna",
        "punycode",
        "hex",
        "utf-7",
        "unicode_escape",
        "undefined",
        "mbcs",
        "\xff",
        "zip",
    )
    kind = _FORM_TYPE + b"; charset=" + random_.choice(names).encode("latin-1")
    body = _form(_part("model", random_.randbytes(30)), _part("file", target.clip, "a"))
    return _request(target, body, kind)


def _broken_chunks(target: Target, random_: random.Random) -> bytes:
    size = random_.choice((b"zz", b"-1", b"ffffffffffffffffffff", b"5", b""))
    whole = _request(target, size + b"\r\nabc\r\n0\r\n\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    return b"\r\n".join([*lines, b"transfer-encoding: chunked"]) + b"\r\n\r\n" + body


def _an_odd_method(target: Target, random_: random.Random) -> bytes:
    method = random_.choice(
        (b"GET", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"HEAD", b"CONNECT", b"G\x00T")
    )
    return _request(target, b"").replace(b"POST", method, 1)


def _an_odd_path(target: Target, random_: random.Random) -> bytes:
    paths = (
        "/../../etc/passwd", "/v1/models/../../x", "//", "/%00", "/v1/models/%2e%2e%2f", "/%ff",
        "*", "/v1/audio/speech", "http://elsewhere/", "/" + "a" * 8000, "/v1/audio/transcriptions/",
    )  # fmt: skip
    return _request(target, b"").replace(PATH.encode(), random_.choice(paths).encode(), 1)


def _no_http(target: Target, random_: random.Random) -> bytes:
    return random_.choice(
        (b"\x16\x03\x01\x02\x00", b"", b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n")
    ) + (random_.randbytes(random_.randrange(300)))


def _two_files(target: Target, random_: random.Random) -> bytes:
    return _with_audio(target, target.clip, _part("file", target.clip, "b.wav"))


def _an_empty_file(target: Target, random_: random.Random) -> bytes:
    return _with_audio(target, target.clip[: random_.choice((0, 1, 4, 11, 44))])
