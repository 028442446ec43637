"""Servers for tests: in a thread, of real models or of one that does as it is told."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from speechquant.core.errors import OptionError
from speechquant.core.transcripts.records import Segment, Transcript, Word
from speechquant.engines.decoding_options import DecodingOptions

RATE_HZ = 16_000


def wav(seconds: float, *, seed: int = 0) -> bytes:
    """A clip of noise."""
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
    target = io.BytesIO()
    soundfile.write(target, samples, RATE_HZ, format="WAV")
    return target.getvalue()


@dataclass
class FakeHearing:
    seconds: int
    decoding: DecodingOptions
    heard: int = 0

    @property
    def key(self) -> object:
        return self.decoding

    @property
    def is_done(self) -> bool:
        return self.heard >= self.seconds

    @property
    def share_done(self) -> float:
        return self.heard / self.seconds


@dataclass
class FakeRecognizer:
    """Hears a second a chunk, once `go` is set; the text of a clip is its length in words."""

    go: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    spec: Any = field(default_factory=lambda: SimpleNamespace(sample_rate_hz=RATE_HZ))
    provider: str = "fake"
    max_clip_seconds: float = 600.0
    takes_timestamps: bool = True
    gives_words: bool = True
    fails: bool = False

    def check(self, wave: NDArray[np.float32], name: str) -> None:
        assert wave.ndim == 1, name

    def check_asked(self, decoding: DecodingOptions) -> None:
        if decoding.language not in (None, "en"):
            raise OptionError(f"{decoding.language!r}: no language of /secret/fake; give en")

    def begin(self, wave: NDArray[np.float32], decoding: DecodingOptions) -> FakeHearing:
        return FakeHearing(max(1, round(len(wave) / RATE_HZ)), decoding)

    def advance(self, hearings: Sequence[FakeHearing]) -> None:
        self.entered.set()
        self.go.wait(30)
        self.batches.append([hearing.seconds for hearing in hearings])
        if self.fails:
            raise RuntimeError("out of memory")
        for hearing in hearings:
            hearing.heard += 1

    def heard(self, hearing: FakeHearing) -> Transcript:
        words = tuple(
            Word(f"w{index}", index, index + 0.5) for index in range(min(hearing.heard, 99))
        )
        segments = tuple(Segment(word.text, word.start, word.end) for word in words)
        text = " ".join(word.text for word in words)
        return Transcript(text, words, segments if hearing.decoding.timestamps else (), "en")


@dataclass(frozen=True)
class Running:
    url: str
    server: Any

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310
            content: bytes = answer.read()
        return content

    def headers_of(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310
            return answer.headers

    def post(
        self, fields: Mapping[str, str], file: bytes | None, *, headers: Mapping[str, str] | None = None,
        path: str = "/v1/audio/transcriptions",
    ) -> tuple[int, Any]:  # fmt: skip
        """Return the status of a form and the answer, of JSON what it says."""
        body = b"".join(
            f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        )
        if file is not None:
            disposition = b'content-disposition: form-data; name="file"; filename="a.wav"'
            body += b"--b\r\n" + disposition + b"\r\n\r\n" + file + b"\r\n"
        request = urllib.request.Request(  # noqa: S310
            self.url + path,
            body + b"--b--\r\n",
            {"content-type": "multipart/form-data; boundary=b", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, _decoded(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error)


def _decoded(answer: Any) -> Any:
    content = answer.read().decode()
    is_json = answer.headers.get_content_type() == "application/json"
    return json.loads(content) if is_json else content


@contextmanager
def _in_thread(run: Any) -> Iterator[Running]:
    """Yield the server that `run` starts when it is given a socket and what to call then."""
    from speechquant.serve.server import listening

    ready = threading.Event()
    found: list[Running] = []

    def on_ready(served: Any, server: Any) -> None:
        found.append(Running(served.url, server))
        ready.set()

    thread = threading.Thread(target=run, args=(listening("127.0.0.1", 0), on_ready))
    thread.start()
    assert ready.wait(60)
    try:
        yield found[0]
    finally:
        found[0].server.drain()
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def serving(models: Mapping[str, Path], folder: Path, **options: Any) -> Iterator[Running]:
    """Yield a server of the bundles, whose names are links in `folder`."""
    from speechquant.serve.options import ServeOptions
    from speechquant.serve.server import serve

    links = [folder / name for name in models]
    for link, target in zip(links, models.values(), strict=True):
        link.symlink_to(target)
    with _in_thread(
        lambda opened, on_ready: serve(links, "cpu", ServeOptions(**options), opened, on_ready)
    ) as running:
        yield running


@contextmanager
def serving_fake(recognizer: FakeRecognizer, **options: Any) -> Iterator[Running]:
    """Yield a server of a model called fake."""
    from speechquant.serve.meters import Meters
    from speechquant.serve.models import ServedModel
    from speechquant.serve.options import ServeOptions
    from speechquant.serve.scheduler import Scheduler
    from speechquant.serve.server import run

    asked, meters, fake = ServeOptions(**options), Meters(), recognizer
    scheduler = Scheduler("fake", [fake], asked.batching, meters)
    models = {"fake": ServedModel("fake", Path("/secret/fake"), fake, scheduler)}
    try:
        with _in_thread(
            lambda opened, on_ready: run(models, asked, meters, opened, on_ready)
        ) as running:
            yield running
            recognizer.go.set()
    finally:
        recognizer.go.set()
        scheduler.close()
