"""What scores the jobs of a search, in this process or in several."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context, parent_process
from types import TracebackType

from speechquant.core.bundles import load_bundle
from speechquant.core.errors import OptionError
from speechquant.core.interrupts import out_of_reach_of_interrupts
from speechquant.core.scoring import Job, Score, Scorer
from speechquant.engines.families import family_of
from speechquant.engines.trials.task import ScoringTask


def new_scorer(task: ScoringTask) -> Scorer:
    """Return what runs the task's jobs in this process, for the family of its model."""
    bundle = load_bundle(task.bundle)
    return family_of(bundle).scorer(task, bundle)


_scorer_of_process: Scorer | None = None


def _start_process(task: ScoringTask) -> None:
    global _scorer_of_process
    # Ctrl-C reaches every process of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _scorer_of_process = new_scorer(task)


def _end_with_parent() -> None:
    """End this process when the one that started it was killed, which could not tell it to."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score_in_process(job: Job) -> Score:
    if _scorer_of_process is None:
        raise RuntimeError("the process was not started by a pool")
    return next(iter(_scorer_of_process.score([job])))


class ScoringPool:
    """Runs jobs in several processes; a context manager."""

    def __init__(self, task: ScoringTask, workers: int) -> None:
        self._workers = workers
        # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
        self._pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start_process, initargs=(task,)
        )

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        """Yield the score of every job, in their order, each as soon as it is there.

        Raises OptionError where a process was ended from outside.
        """
        try:
            # Not map(), which cancels what is left: where a process was ended, that can make the
            # pool's own thread fail in Python 3.11, and then the other processes never end.
            with out_of_reach_of_interrupts():  # the first jobs start the processes
                futures = [self._pool.submit(_score_in_process, job) for job in jobs]
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise OptionError(
                f"one of the {self._workers} processes that score trials was ended, most likely "
                "for want of memory; give fewer --workers and run the same command again"
            ) from error


@contextmanager
def open_scorer(task: ScoringTask, workers: int) -> Iterator[Scorer]:
    """Yield what scores the task's jobs in so many processes, which share the cores."""
    if workers == 1:
        yield new_scorer(task)
        return
    threads = task.threads or max(1, (os.cpu_count() or 1) // workers)
    with ScoringPool(replace(task, threads=threads), workers) as pool:
        yield pool
