"""Jobs in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class ThisProcess(Generic[JobT, ResultT]):
    """Runs jobs with `do`, in their order."""

    count = 1

    def __init__(self, do: Callable[[JobT], ResultT]) -> None:
        self._do = do

    def completed(self, jobs: Sequence[JobT]) -> Iterator[tuple[int, ResultT]]:
        """Yield the place of every job and its result."""
        for place, job in enumerate(jobs):
            yield place, self._do(job)
