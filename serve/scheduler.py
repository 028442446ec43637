"""The queue of one model: clips of all clients, in batches, a chunk at a time each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from speechquant.core.transcripts.records import Transcript
from speechquant.engines.recognizers import Hearing, Recognizer
from speechquant.serve.options import Batching

log = logging.getLogger(__name__)


class Watch(Protocol):
    """What counts the batches and the queue."""

    def queued(self, model: str, clips: int) -> None:
        """Note the length of a queue."""
        ...

    def ran(self, model: str, clips: int, audio_seconds: float, compute_seconds: float) -> None:
        """Note a batch."""
        ...


@dataclass(eq=False)
class Job:
    """A clip in the queue; `on_change` is called after each of its chunks, in a worker's thread.

    `transcript` is what was heard so far, `error` why there will be no more. `is_over`, whether
    nothing more will come, is set after both: whoever reads it first misses nothing.
    """

    hearing: Hearing
    seconds: float
    on_change: Callable[[], None]
    arrived: float = field(default_factory=time.monotonic)
    transcript: Transcript = field(default_factory=lambda: Transcript(""))
    error: Exception | None = None
    is_given_up: bool = False
    is_over: bool = False


class Scheduler:
    """Runs the clips of one model: the first in the queue, and what can go with it.

    A clip that is longer than a chunk goes back to the end of the queue after each, so that it
    holds up the clips behind it by one batch only.
    """

    def __init__(
        self, name: str, recognizers: Sequence[Recognizer], batching: Batching, watch: Watch
    ) -> None:
        self._name, self._batching, self._watch = name, batching, watch
        self._queue: list[Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._workers = [
            threading.Thread(target=self._work, args=(recognizer,), name=f"{name} {index}")
            for index, recognizer in enumerate(recognizers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, job: Job) -> None:
        """Add a clip to the queue."""
        with self._changed:
            self._queue.append(job)
            self._note_queue()
            self._changed.notify_all()

    def give_up(self, job: Job) -> None:
        """Take a clip out of the queue; what is running of it runs to the end of its chunk."""
        with self._changed:
            job.is_given_up = True
            if job in self._queue:
                self._queue.remove(job)
                self._note_queue()

    def close(self) -> None:
        """Give up what is left, and end the workers."""
        with self._changed:
            self._is_closed = True
            self._queue.clear()
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self, recognizer: Recognizer) -> None:
        while batch := self._next_batch():
            self._run(recognizer, batch)

    def _next_batch(self) -> list[Job]:
        """Return clips of one key, the first of the queue among them; none once it is closed."""
        with self._changed:
            while True:
                while not self._queue and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return []
                first = self._queue[0]
                left = first.arrived + self._batching.wait_ms / 1000 - time.monotonic()
                if left <= 0 or len(self._beside(first)) >= self._batching.most:
                    break
                self._changed.wait(left)
            batch = self._beside(first)
            self._queue = [job for job in self._queue if job not in batch]
            self._note_queue()
            return batch

    def _beside(self, first: Job) -> list[Job]:
        """Return the first and those that can go with it, the nearest in length before others."""
        key = first.hearing.key
        others = [job for job in self._queue[1:] if job.hearing.key == key]
        others.sort(key=lambda job: abs(job.seconds - first.seconds))
        return [first, *others[: self._batching.most - 1]]

    def _note_queue(self) -> None:
        self._watch.queued(self._name, len(self._queue))

    def _run(self, recognizer: Recognizer, batch: list[Job]) -> None:
        before = sum(job.hearing.share_done * job.seconds for job in batch)
        started = time.perf_counter()
        try:
            recognizer.advance([job.hearing for job in batch])
            for job in batch:
                job.transcript = recognizer.heard(job.hearing)
        except Exception as error:  # whatever it is, the next batch may be well
            log.exception("%s: a batch of %d clips failed", self._name, len(batch))
            for job in batch:
                job.error = error
        heard = sum(job.hearing.share_done * job.seconds for job in batch) - before
        self._watch.ran(self._name, len(batch), heard, time.perf_counter() - started)
        for job in batch:
            job.is_over = job.error is not None or job.hearing.is_done
        with self._changed:
            self._queue += [job for job in batch if not job.is_over and not job.is_given_up]
            self._note_queue()
            self._changed.notify_all()
        for job in batch:
            job.on_change()
