"""The seam: a task is what many jobs share, workers are what runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from speechquant.core.manifests import LabelledClip

JobT_contra = TypeVar("JobT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Place:
    """Where a worker finds what a task names, where that is not as the task says.

    `files` maps paths of the task to those of the worker; `threads` are the cores it may use.
    """

    folder: Path | None = None
    files: Mapping[Path, Path] = field(default_factory=dict)
    threads: int | None = None

    def path(self, path: Path) -> Path:
        """Return where a file of the task is."""
        return self.files.get(path, path)

    def clips(self, clips: Sequence[LabelledClip]) -> tuple[LabelledClip, ...]:
        """Return the clips with the paths that they have here."""
        return tuple(map(self._clip, clips)) if self.files else tuple(clips)

    def _clip(self, clip: LabelledClip) -> LabelledClip:
        path, member = self.path(clip.path), clip.member
        return replace(clip, path=path, member=member and replace(member, path=path))


class Task(Protocol[JobT_contra, ResultT_co]):
    """What many jobs share; small, so that it can be sent to other processes.

    A job's result depends on the task and the job alone, so it may run anywhere, and again.
    """

    @property
    def folder(self) -> Path:
        """The bundle or engine."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Every other file that a job may read."""
        ...

    @property
    def threads(self) -> int | None:
        """The cores that a job may use, None for all or for its share of them."""
        ...

    def placed(self, place: Place) -> Task[JobT_contra, ResultT_co]:
        """Return the task as a worker at `place` has to do it."""
        ...

    def opened(self) -> AbstractContextManager[Callable[[JobT_contra], ResultT_co]]:
        """Yield what does a job in this process."""
        ...


class Workers(Protocol[JobT_contra, ResultT_co]):
    """What runs the jobs of one task."""

    @property
    def count(self) -> int:
        """How many jobs run at a time."""
        ...

    def completed(self, jobs: Sequence[JobT_contra]) -> Iterator[tuple[int, ResultT_co]]:
        """Yield the place of every job and its result as soon as it is there, in any order.

        Raises what a job raises, and OptionError where workers are lost again and again.
        """
        ...


def in_order(completed: Iterator[tuple[int, ResultT]]) -> Iterator[ResultT]:
    """Yield results by the place of their jobs, each as soon as those before it are there."""
    early: dict[int, Any] = {}
    wanted = 0
    for place, result in completed:
        early[place] = result
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1


class Loss:
    """Counts workers that were lost: a few may be, a job that costs every one of them may not."""

    _MOST = 3

    def __init__(self) -> None:
        self._in_a_row = 0
        self._by_job: dict[int, int] = {}

    def is_progress(self) -> None:
        """Remember that a job was done."""
        self._in_a_row = 0

    def is_too_many(self, jobs: Sequence[int], workers: int) -> bool:
        """Count a worker that was lost with `jobs`; say whether it is time to give up."""
        self._in_a_row += 1
        for job in jobs:
            self._by_job[job] = self._by_job.get(job, 0) + 1
        of_one_job = max((self._by_job[job] for job in jobs), default=0)
        return of_one_job > self._MOST or self._in_a_row > self._MOST * workers
