"""Jobs in several processes of this machine; one that is killed is started again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Any, Generic, TypeVar

from speechquant.core.errors import OptionError, SpeechquantError
from speechquant.core.interrupts import out_of_reach_of_interrupts
from speechquant.recipes.executors.task import Loss, Task

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# Jobs handed over at a time: one that runs and one that waits, so that no process does.
JOBS_IN_HAND = 2
_OUT_OF_MEMORY = 3  # exit code
# How long processes may take to end what they do when all is done or given up.
_PATIENCE_SECONDS = 30.0

_do: Callable[[Any], Any] | None = None
_refusal: SpeechquantError | None = None
_open = ExitStack()


def _start_process(task: Task[Any, Any]) -> None:
    global _do, _refusal
    # Ctrl-C reaches every process of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _do = _open.enter_context(task.opened())
    except SpeechquantError as error:
        _refusal = error  # raised here it would be lost


def _end_with_parent() -> None:
    """End this process when the one that started it was killed, which could not tell it to."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_in_process(job: Any) -> Any:
    if _refusal is not None:
        raise _refusal
    if _do is None:
        raise RuntimeError("the process was not started by a pool")
    try:
        return _do(job)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)  # as if the system had ended it: the job runs again elsewhere


class ProcessPool(Generic[JobT, ResultT]):
    """Runs jobs in several processes; a context manager."""

    def __init__(self, task: Task[JobT, ResultT], workers: int) -> None:
        self._task, self.count = task, workers
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
        return ProcessPoolExecutor(
            self.count, get_context("spawn"), initializer=_start_process, initargs=(self._task,)
        )

    def __enter__(self) -> ProcessPool[JobT, ResultT]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        processes = list(self._pool._processes.values())
        thread: Any = self._pool._executor_manager_thread
        self._pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in processes:
            # One that was killed as it took a job holds the lock of all the others for ever.
            if not connection.wait([process.sentinel], max(0.0, deadline - time.monotonic())):
                process.kill()
        if thread is not None:
            thread.join()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return list(self._pool._processes)

    def completed(self, jobs: Sequence[JobT]) -> Iterator[tuple[int, ResultT]]:
        """Yield the place of every job and its result as soon as it is there.

        Where a process is ended from outside, the jobs of all go to new ones. Raises OptionError
        where that happens again and again.
        """
        waiting, running = deque(range(len(jobs))), dict[Future[ResultT], int]()
        loss = Loss()
        while waiting or running:
            lost = self._hand_over(jobs, waiting, running)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(place)
                    waiting.appendleft(place)
                else:
                    yield place, future.result()
                    loss.is_progress()
            if lost:
                # All that was handed over is lost with the pool.
                waiting.extendleft(running.values())
                running.clear()
                self._start_again(loss, lost)

    def _hand_over(
        self, jobs: Sequence[JobT], waiting: deque[int], running: dict[Future[ResultT], int]
    ) -> list[int]:
        """Submit as many jobs as may be in hand; return the one that found the pool broken."""
        with out_of_reach_of_interrupts():  # the first jobs start the processes
            while waiting and len(running) < JOBS_IN_HAND * self.count:
                try:
                    future = self._pool.submit(_do_in_process, jobs[waiting[0]])
                except BrokenProcessPool:
                    return [waiting[0]]
                running[future] = waiting.popleft()
        return []

    def _start_again(self, loss: Loss, lost: Sequence[int]) -> None:
        if loss.is_too_many(lost, workers=1):
            raise OptionError(
                f"one of the {self.count} processes was ended again and again, most likely for "
                "want of memory; give fewer --workers and run the same command again"
            )
        log.warning("warning: a process was ended from outside; its jobs run again in new ones")
        # Not cancelled: in Python 3.11 that can make a broken pool's own thread fail.
        self._pool.shutdown()
        self._pool = self._new_pool()
