from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving import FakeHearing, FakeRecognizer

from speechquant.engines.decoding_options import GREEDY, DecodingOptions
from speechquant.serve.options import Batching
from speechquant.serve.scheduler import Job, Scheduler


class Tally:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.audio_seconds = 0.0

    def queued(self, model: str, clips: int) -> None:
        pass

    def ran(self, model: str, clips: int, audio_seconds: float, compute_seconds: float) -> None:
        self.sizes.append(clips)
        self.audio_seconds += audio_seconds


@contextmanager
def scheduler(recognizer: FakeRecognizer, tally: Tally, **batching: Any) -> Iterator[Scheduler]:
    opened: Any = [recognizer]
    made = Scheduler("fake", opened, Batching(**batching), tally)
    try:
        yield made
    finally:
        recognizer.go.set()
        made.close()


def job(seconds: int, decoding: DecodingOptions = GREEDY) -> tuple[Job, threading.Event]:
    ended = threading.Event()

    def on_change() -> None:
        if made.is_over:
            ended.set()

    made = Job(FakeHearing(seconds, decoding), float(seconds), on_change)
    return made, ended


def test_a_batch_is_collected_up_to_its_size() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    with scheduler(recognizer, tally, most=3, wait_ms=10_000) as queue:
        jobs = [job(1) for _ in range(3)]
        recognizer.go.set()
        for one, _ in jobs:
            queue.submit(one)
        assert all(ended.wait(5) for _, ended in jobs)  # long before ten seconds are over
    assert tally.sizes == [3]
    assert tally.audio_seconds == 3.0


def test_a_clip_alone_waits_no_longer_than_it_may() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    recognizer.go.set()
    with scheduler(recognizer, tally, most=8, wait_ms=30) as queue:
        one, ended = job(1)
        queue.submit(one)
        assert ended.wait(5)
    assert tally.sizes == [1]


def test_only_what_is_asked_alike_shares_a_batch() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    with scheduler(recognizer, tally, most=8, wait_ms=50) as queue:
        other = DecodingOptions(language="de")
        jobs = [job(1), job(1, other), job(1), job(1, other)]
        for one, _ in jobs:
            queue.submit(one)
        recognizer.go.set()
        assert all(ended.wait(5) for _, ended in jobs)
    assert tally.sizes == [2, 2]


def test_a_long_clip_goes_in_turns_with_short_ones() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    with scheduler(recognizer, tally, most=1, wait_ms=0) as queue:
        long, short = job(50), [job(1) for _ in range(5)]
        for one, _ in (long, *short):
            queue.submit(one)
        recognizer.go.set()
        assert long[1].wait(10)
    # One chunk of the long one before each short one, at most.
    assert recognizer.batches[:7] == [[50], [1], [1], [1], [1], [1], [50]]


def test_the_nearest_in_length_share_a_batch() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    with scheduler(recognizer, tally, most=2, wait_ms=50) as queue:
        jobs = [job(seconds) for seconds in (3, 9, 4)]
        for one, _ in jobs:
            queue.submit(one)
        recognizer.go.set()
        assert all(ended.wait(5) for _, ended in jobs)
    assert recognizer.batches[0] == [3, 4]


def test_what_is_given_up_does_not_run() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    with scheduler(recognizer, tally, most=1, wait_ms=0) as queue:
        running, dropped, last = job(3), job(5), job(1)
        for one, _ in (running, dropped, last):
            queue.submit(one)
        queue.give_up(dropped[0])
        queue.give_up(running[0])
        recognizer.go.set()
        assert last[1].wait(5)
    assert [5] not in recognizer.batches
    assert recognizer.batches.count([3]) <= 1


def test_a_batch_that_fails_does_not_end_the_worker() -> None:
    recognizer, tally = FakeRecognizer(fails=True), Tally()
    recognizer.go.set()
    with scheduler(recognizer, tally, most=1, wait_ms=0) as queue:
        bad, ended = job(1)
        queue.submit(bad)
        assert ended.wait(5)
        assert isinstance(bad.error, RuntimeError)
        recognizer.fails = False
        good, ended = job(1)
        queue.submit(good)
        assert ended.wait(5)
        assert good.error is None and good.transcript.text == "w0"


def test_two_clips_that_are_alike_are_two() -> None:
    recognizer, tally = FakeRecognizer(), Tally()
    with scheduler(recognizer, tally, most=1, wait_ms=0) as queue:
        jobs = [job(1) for _ in range(3)]
        for one, _ in jobs:
            queue.submit(one)
        recognizer.go.set()
        assert all(ended.wait(5) for _, ended in jobs)
    assert tally.sizes == [1, 1, 1]


def test_what_is_over_has_all_that_was_heard() -> None:
    """Seen from another thread in the middle of a batch, as by the event loop."""
    recognizer, tally = FakeRecognizer(), Tally()
    recognizer.go.set()
    seen = []

    def heard(hearing: Any) -> Any:
        seen.append((hearing.is_done, one.is_over))
        return FakeRecognizer.heard(recognizer, hearing)

    recognizer.heard = heard  # type: ignore[method-assign]
    with scheduler(recognizer, tally, most=1, wait_ms=0) as queue:
        one, ended = job(1)
        queue.submit(one)
        assert ended.wait(5)
    assert seen == [(True, False)] and one.is_over and one.transcript.text == "w0"
