"""Places, limits and the end of a server, with a model that waits until it is told to go on."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import soundfile
from serving import FakeRecognizer, Running, serving_fake, wav

pytest.importorskip("fastapi")
from speechquant.serve.options import Batching, Limits

FAKE = {"model": "fake"}
TOKEN = "secret"  # noqa: S105
PART_BEGIN = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
AT_ONCE = Batching(most=1, wait_ms=0)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def metric(running: Running, name: str) -> float:
    lines = running.get("/metrics").decode().splitlines()
    return float(next((one for one in lines if one.startswith(name)), "0").rpartition(" ")[2])


def open_requests(running: Running) -> float:
    return metric(running, "speechquant_open_requests")


def posted(pool: ThreadPoolExecutor, running: Running, seconds: float) -> Future[tuple[int, Any]]:
    return pool.submit(running.post, FAKE, wav(seconds))


def test_a_full_queue_answers_429() -> None:
    model = FakeRecognizer()
    with (
        serving_fake(model, limits=Limits(requests=2), batching=AT_ONCE) as running,
        ThreadPoolExecutor() as pool,
    ):
        waiting = [posted(pool, running, 1) for _ in range(2)]
        until(lambda: open_requests(running) == 2)
        status, answer = running.post(FAKE, wav(1))
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert answer["error"]["type"] == "rate_limit_error"
        model.go.set()
        assert [future.result()[0] for future in waiting] == [200, 200]
        assert running.post(FAKE, wav(1))[0] == 200


def test_hours_that_wait_are_limited_too() -> None:
    model = FakeRecognizer()
    limits = Limits(waiting_seconds=5.0)
    with (
        serving_fake(model, limits=limits, batching=AT_ONCE) as running,
        ThreadPoolExecutor() as pool,
    ):
        first = posted(pool, running, 4)
        assert model.entered.wait(20)
        status, answer = running.post(FAKE, wav(3))
        assert status == 429 and "of audio wait" in answer["error"]["message"]
        model.go.set()
        assert first.result()[1]["text"] == "w0 w1 w2 w3"
        assert running.post(FAKE, wav(3))[0] == 200


def test_a_client_that_goes_away_frees_its_place() -> None:
    model = FakeRecognizer()
    with (
        serving_fake(model, limits=Limits(requests=2), batching=AT_ONCE) as running,
        ThreadPoolExecutor() as pool,
    ):
        first = posted(pool, running, 1)
        until(lambda: open_requests(running) == 1)
        gone = begun_request(running, wav(7))
        until(lambda: metric(running, "speechquant_queue_clips") == 1)
        gone.close()
        until(lambda: open_requests(running) == 1)
        assert metric(running, "speechquant_queue_clips") == 0
        model.go.set()
        assert first.result()[0] == 200
        assert [7] not in model.batches


def test_a_client_that_leaves_its_stream_frees_its_place() -> None:
    model = FakeRecognizer()
    with serving_fake(model, batching=AT_ONCE) as running:
        gone = begun_request(running, wav(300), stream="true")
        assert model.entered.wait(20)
        gone.close()
        until(lambda: open_requests(running) == 0)
        model.go.set()
        assert running.post(FAKE, wav(1))[0] == 200
        assert model.batches.count([300]) < 10


def begun_request(running: Running, file: bytes, **fields: str) -> socket.socket:
    """Return the connection of a request that was sent and waits for its answer."""
    host, port = running.url.removeprefix("http://").split(":")
    body = b"".join(
        f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in {**FAKE, **fields}.items()
    )
    body += PART_BEGIN + file + b"\r\n--b--\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def test_a_long_file_does_not_hold_up_a_short_one() -> None:
    model = FakeRecognizer()
    with serving_fake(model, batching=AT_ONCE) as running, ThreadPoolExecutor() as pool:
        long = posted(pool, running, 200)
        until(lambda: open_requests(running) == 1)
        short = posted(pool, running, 1)
        until(lambda: metric(running, "speechquant_queue_clips") == 1)
        model.go.set()
        assert short.result()[1]["text"] == "w0"
        assert long.result()[0] == 200
    assert model.batches.index([1]) <= 2


def test_a_server_that_drains_answers_what_it_accepted_and_503_to_others() -> None:
    model = FakeRecognizer()
    with serving_fake(model, batching=AT_ONCE) as running, ThreadPoolExecutor() as pool:
        accepted = [posted(pool, running, 1) for _ in range(3)]
        until(lambda: open_requests(running) == 3)
        running.server.handle_exit(15, None)
        status, answer = running.post(FAKE, wav(1))
        assert (status, answer["error"]["code"]) == (503, "draining")
        with pytest.raises(OSError, match="503"):
            running.get("/health")
        model.go.set()
        assert [future.result()[0] for future in accepted] == [200] * 3


def test_what_is_too_large_answers_413() -> None:
    model = FakeRecognizer()
    model.go.set()
    limits = Limits(megabytes=0.1, audio_seconds=2.0)
    with serving_fake(model, limits=limits) as running:
        status, answer = running.post(FAKE, wav(4))
        assert (status, answer["error"]["code"]) == (413, "request_too_large")
        chunks = [PART_BEGIN, *[bytes(10_000)] * 40]
        assert status_of_chunks(running, chunks) == 413  # of which no length is announced
        status, answer = running.post(FAKE, wav(2.5))
        assert (status, answer["error"]["code"]) == (413, "audio_too_long")


@pytest.mark.parametrize(
    ("charset", "expected"),
    [("utf-8", 200), ('"UTF-8"', 200), ("unicode_escape", 415), ("idna", 415), ("no-codec", 415)],
)
def test_fields_are_decoded_by_no_codec_that_a_client_names(charset: str, expected: int) -> None:
    model = FakeRecognizer()
    model.go.set()
    with serving_fake(model, batching=AT_ONCE) as running:
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        status, answer = running.post(FAKE, wav(1), headers={"content-type": kind})
    assert status == expected
    assert status == 200 or "UTF-8" in answer["error"]["message"]


def test_a_form_that_does_not_end_is_refused_and_its_file_closed() -> None:
    model = FakeRecognizer()
    with serving_fake(model, batching=AT_ONCE) as running:
        whole = PART_BEGIN + wav(1) + b"\r\n"
        # An unclosed file would be a ResourceWarning, which is an error here.
        assert status_of_chunks(running, [whole, b"--bZ--\r\n"], ends=True) == 400
        assert status_of_chunks(running, [whole, b"--b-", b"-\r\n"], ends=True) == 400  # no model
    assert model.batches == []


def test_a_bomb_is_not_decoded() -> None:
    model = FakeRecognizer()
    with serving_fake(model) as running:
        bomb = io.BytesIO()
        silence = np.zeros((48_000 * 20, 8), np.int16)  # not long, but of eight channels
        soundfile.write(bomb, silence, 48_000, format="FLAC")
        assert len(bomb.getvalue()) < 20_000
        status, answer = running.post(FAKE, bomb.getvalue())
        assert (status, answer["error"]["code"]) == (413, "audio_too_dense")


def status_of_chunks(
    running: Running, chunks: list[bytes], *, pause: float = 0.0, ends: bool = False
) -> int:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n\r\n"
        )
        try:
            for chunk in chunks:
                connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                time.sleep(pause)
            if ends:
                connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # it has answered before all was sent
        return int(connection.recv(1000).split()[1])


def test_a_body_that_comes_too_slowly_answers_408() -> None:
    model = FakeRecognizer()
    with serving_fake(model, limits=Limits(idle_seconds=0.3, requests=1)) as running:
        assert status_of_chunks(running, [b"--b\r\n"], pause=0.0) == 408
    with serving_fake(FakeRecognizer(), limits=Limits(body_seconds=0.5)) as running:
        assert status_of_chunks(running, [PART_BEGIN, *[b"x"] * 20], pause=0.1) == 408


def test_a_model_that_fails_answers_500_without_saying_where() -> None:
    model = FakeRecognizer(fails=True)
    model.go.set()
    with serving_fake(model) as running:
        status, answer = running.post(FAKE, wav(1))
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "memory" not in json.dumps(answer)
        status, events = running.post({**FAKE, "stream": "true"}, wav(1))
        assert json.loads(events.removeprefix("data: "))["error"]["code"] == "model_failed"


def test_the_folder_of_a_model_is_nobodys_business() -> None:
    with serving_fake(FakeRecognizer()) as running:
        status, answer = running.post({**FAKE, "language": "de"}, wav(1))
        assert status == 400
        assert answer["error"]["message"] == "'de': no language of fake; give en"


def test_metrics_tell_requests_batches_and_speed() -> None:
    model = FakeRecognizer()
    model.go.set()
    with serving_fake(model) as running:
        assert running.post(FAKE, wav(3))[0] == 200
        assert running.post({"model": "x" * 50}, wav(1))[0] == 404
        text = running.get("/metrics").decode()
        assert 'speechquant_requests_total{status="200"} 1.0' in text
        assert 'speechquant_requests_total{status="404"} 1.0' in text
        assert 'speechquant_batch_clips_count{model="fake"} 3.0' in text
        assert 'speechquant_audio_seconds_total{model="fake"} 3.0' in text
        assert "speechquant_real_time_factor" in text and "xxx" not in text


def test_streams_of_verbose_json_have_times() -> None:
    model = FakeRecognizer()
    model.go.set()
    asked = {**FAKE, "stream": "true", "response_format": "verbose_json"}
    with serving_fake(model) as running:
        _, events = running.post({**asked, "timestamp_granularities[]": "word"}, wav(2))
    found = [json.loads(event.removeprefix("data: ")) for event in events.strip().split("\n\n")]
    *deltas, done = found  # one delta or two, as fast as they were heard
    words = [word for event in deltas for word in event["words"]]
    assert (
        words
        == done["words"]
        == [
            {"word": "w0", "start": 0, "end": 0.5},
            {"word": "w1", "start": 1, "end": 1.5},
        ]
    )
    assert "".join(event["delta"] for event in deltas) == done["text"] == "w0 w1"
    assert done["duration"] == 2.0


def test_no_token_no_service() -> None:
    with serving_fake(FakeRecognizer(), token=TOKEN) as running:
        assert running.post(FAKE, wav(1))[0] == 401
        assert running.post(FAKE, wav(1), headers={"authorization": "Basic " + TOKEN})[0] == 401
        assert running.post(FAKE, wav(1), headers={"authorization": "Bearer \xe9"})[0] == 401
        assert running.post({}, None, headers={"authorization": "Bearer " + TOKEN})[0] == 400
        with pytest.raises(OSError, match="401"):
            running.get("/metrics")
        assert json.loads(running.get("/health"))["status"] == "ok"


def test_threads_end_with_their_server() -> None:
    before = threading.active_count()
    model = FakeRecognizer()
    model.go.set()
    with serving_fake(model) as running:
        running.get("/health")
    until(lambda: threading.active_count() <= before + 2)  # the loop's own may linger
