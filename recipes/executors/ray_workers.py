"""Jobs on a Ray cluster; what a lost worker or machine had in hand runs on another one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from speechquant.core.errors import OptionError
from speechquant.core.processor import read_processor
from speechquant.recipes.executors.pool import JOBS_IN_HAND
from speechquant.recipes.executors.remote import (
    Refusal,
    RemoteWorker,
    Shipment,
    Started,
    Versions,
)
from speechquant.recipes.executors.shipping import (
    Lacking,
    Needed,
    ShippedFile,
    shipped_audio,
    shipped_folder,
)
from speechquant.recipes.executors.task import Loss, Place, Task

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

_IMPATIENT_SECONDS = 60.0


@dataclass(eq=False)
class _Member:
    """A worker as this side sees it: the jobs in its hands by their references."""

    actor: Any
    starting: Any | None
    jobs: dict[Any, int] = field(default_factory=dict)
    pid: int | None = None


class _Lost:
    """What a reference gives whose worker is gone."""


class RayWorkers(Generic[JobT, ResultT]):
    """Runs jobs on the cluster that `ray` is connected to; a context manager.

    `workers` is None for as many as it has room for.
    """

    def __init__(self, ray: Any, task: Task[JobT, ResultT], workers: int | None) -> None:
        self._ray = ray
        self._threads = task.threads or 1
        cores = int(ray.cluster_resources().get("CPU", 1))
        self.count = workers or max(1, cores // self._threads)
        self._needed = Needed.by(task.folder, task.files)
        self._task = ray.put(task.placed(Place(threads=self._threads)))
        self._versions = Versions.here()
        self._processor, self._is_mixed = read_processor(), False
        self._members: list[_Member] = []
        self._shipped_folder: tuple[ShippedFile, ...] = ()
        self._shipped_files: dict[Path, ShippedFile] = {}

    def __enter__(self) -> RayWorkers[JobT, ResultT]:
        for _ in range(self.count):
            self._add_member()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._members:
            self._end(self._members.pop())

    @property
    def pids(self) -> list[int]:
        """The processes that are ready."""
        return [member.pid for member in self._members if member.pid is not None]

    def completed(self, jobs: Sequence[JobT]) -> Iterator[tuple[int, ResultT]]:
        """Yield the place of every job and its result as soon as it is there."""
        for member in self._members:
            member.jobs.clear()  # of a list that was not heard to its end
        waiting, loss, left = deque(range(len(jobs))), Loss(), len(jobs)
        while left:
            self._hand_over(jobs, waiting)
            for member, reference in self._ready():
                if member not in self._members:
                    continue  # lost a moment ago
                found = self._value(reference)
                if isinstance(found, _Lost):
                    self._lose(member, waiting, loss)
                elif isinstance(found, Refusal):
                    raise found.error
                elif reference == member.starting:
                    self._is_started(member, found)
                else:
                    left -= 1
                    loss.is_progress()
                    yield member.jobs.pop(reference), found

    def _add_member(self) -> None:
        actor = (
            self._ray.remote(RemoteWorker)
            .options(num_cpus=self._threads, scheduling_strategy="SPREAD", max_restarts=0)
            .remote()
        )
        member = _Member(actor, None)
        self._start(member, Shipment())
        self._members.append(member)

    def _start(self, member: _Member, shipment: Shipment) -> None:
        member.starting = member.actor.start.remote(
            self._task, self._needed, self._versions, shipment
        )

    def _is_started(self, member: _Member, found: Started | Lacking) -> None:
        if isinstance(found, Lacking):
            self._start(member, self._shipment(found))
        else:
            member.starting, member.pid = None, found.pid
            if found.processor != self._processor and not self._is_mixed:
                self._is_mixed = True
                log.warning("warning: other processors on the cluster: last bits may differ")

    def _shipment(self, lacking: Lacking) -> Shipment:
        """Return what a machine lacks; its pieces stay where all can fetch them."""
        if lacking.folder is None and not self._shipped_folder:
            log.info("shipping %s", self._needed.folder)
            self._shipped_folder = tuple(shipped_folder(self._needed.folder, self._ray.put))
        for path in lacking.files:
            if path not in self._shipped_files:
                self._shipped_files[path] = shipped_audio(path, self._ray.put)
        files = {path: self._shipped_files[path] for path in lacking.files}
        return Shipment(self._shipped_folder if lacking.folder is None else (), files)

    def _hand_over(self, jobs: Sequence[JobT], waiting: deque[int]) -> None:
        """Give jobs to those who have least in hand, and to nobody more than JOBS_IN_HAND."""
        for in_hand in range(JOBS_IN_HAND):
            for member in self._members:
                if not waiting:
                    return
                if member.starting is None and len(member.jobs) == in_hand:
                    place = waiting.popleft()
                    member.jobs[member.actor.do.remote(jobs[place])] = place

    def _ready(self) -> list[tuple[_Member, Any]]:
        """Wait until something is there, and return all that is."""
        owners = {
            reference: member
            for member in self._members
            for reference in (*member.jobs, member.starting)
            if reference is not None
        }
        references = list(owners)
        ready, _ = self._ray.wait(references, num_returns=1, timeout=_IMPATIENT_SECONDS)
        if ready:
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        elif all(member.starting is not None for member in self._members):
            log.warning("warning: still waiting for room on the cluster for the first worker")
        return [(owners[reference], reference) for reference in ready]

    def _value(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError:
            raise  # a fault of the program
        except exceptions.RayError as error:
            log.debug("lost: %s", error)
            return _Lost()

    def _lose(self, member: _Member, waiting: deque[int], loss: Loss) -> None:
        places = list(member.jobs.values())
        waiting.extendleft(reversed(places))
        self._members.remove(member)
        self._end(member)
        if loss.is_too_many(places, self.count):
            raise OptionError(
                "workers of the cluster were lost again and again, most likely for want of memory; "
                "give fewer --workers or more --threads and run the same command again"
            )
        log.warning("warning: a worker of the cluster was lost; its jobs run on others")
        self._add_member()

    def _end(self, member: _Member) -> None:
        self._ray.kill(member.actor)
