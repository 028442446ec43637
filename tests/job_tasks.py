"""Tasks for tests of executors, in a module of their own: other processes import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from speechquant.core.errors import AudioError
from speechquant.recipes.executors.task import Place

# What a job does beside squaring its number.
NOTHING, SLOW, DIES_ONCE, DIES, NO_MEMORY_ONCE, REFUSED = range(6)


@dataclass(frozen=True)
class Squares:
    """Jobs are (number, what else); `folder` holds a description and a mark of what happened once."""

    folder: Path
    marks: Path
    files: Sequence[Path] = ()
    threads: int | None = 1

    def placed(self, place: Place) -> Squares:
        files = [place.path(path) for path in self.files]
        return replace(self, folder=place.folder or self.folder, files=files, threads=place.threads)

    @contextmanager
    def opened(self) -> Iterator[Callable[[tuple[int, int]], int]]:
        added = sum(int(path.read_text()) for path in (self.folder / "added", *self.files))

        def square(job: tuple[int, int]) -> int:
            number, what = job
            mark = self.marks / str(number)
            happens = what == DIES or (what in (DIES_ONCE, NO_MEMORY_ONCE) and not mark.exists())
            if happens:
                mark.touch()
                if what == NO_MEMORY_ONCE:
                    raise MemoryError
                os.kill(os.getpid(), signal.SIGKILL)
            if what == SLOW:
                time.sleep(0.1)
            if what == REFUSED:
                raise AudioError(f"{number}: cannot be used")
            return number * number + added

        yield square


def squares(folder: Path, files: Sequence[Path] = ()) -> Squares:
    """Return the task of a folder that is made for it."""
    folder.mkdir()
    (folder / "bundle.json").write_text(f"a description of {folder}")
    (folder / "added").write_text("1000")
    marks = folder.with_name(f"{folder.name}-marks")
    marks.mkdir()
    return Squares(folder, marks, files)
