"""Which executor runs the jobs of a step, and with how many workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from speechquant.core.errors import OptionError
from speechquant.recipes.executors.here import ThisProcess
from speechquant.recipes.executors.pool import ProcessPool
from speechquant.recipes.executors.task import Place, Task, Workers

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

PROCESSES, RAY = "processes", "ray"
RAY_SCHEME = "ray://"


@dataclass(frozen=True)
class ExecutorOptions:
    """Where jobs run; raises OptionError for an executor that there is not.

    `name` is PROCESSES, RAY, or the ray:// address of a cluster. `workers` are processes: None is
    one on this machine, and as many as a cluster has room for.
    """

    name: str = PROCESSES
    workers: int | None = None

    def __post_init__(self) -> None:
        is_address = self.name.startswith(RAY_SCHEME) and self.name != RAY_SCHEME
        if self.name not in (PROCESSES, RAY) and not is_address:
            raise OptionError(
                f"no executor {self.name!r}; choose {PROCESSES}, {RAY} or {RAY_SCHEME}HOST:PORT"
            )
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"{self.workers} workers; give 1 or more")

    @property
    def is_this_process(self) -> bool:
        """Whether no other process takes part."""
        return self.name == PROCESSES and self.workers in (None, 1)


HERE = ExecutorOptions()


@contextmanager
def opened_workers(
    task: Task[JobT, ResultT], options: ExecutorOptions
) -> Iterator[Workers[JobT, ResultT]]:
    """Yield what runs the jobs of a task."""
    if options.is_this_process:
        with task.opened() as do:
            yield ThisProcess(do)
    elif options.name == PROCESSES:
        workers = options.workers or 1
        threads = task.threads or max(1, (os.cpu_count() or 1) // workers)
        with ProcessPool(task.placed(Place(threads=threads)), workers) as pool:
            yield pool
    else:
        from speechquant.recipes.executors.cluster import connected
        from speechquant.recipes.executors.ray_workers import RayWorkers

        address = None if options.name == RAY else options.name
        ray = connected(address, (options.workers or 1) * (task.threads or 1))
        with RayWorkers(ray, task, options.workers) as cluster:
            yield cluster
