"""The folder beside an output that holds what a killed run leaves to the next one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speechquant.calibrators.search_log import SEARCH_FILE
from speechquant.core.bundles import DESCRIPTION
from speechquant.core.files import only_process

DRAFT_FOLDER, BALANCED_FOLDER = "draft", "balanced"  # bundles
# All that a run puts into its work folder beside the bundles, and what a killed one leaves of that.
_WORK_FILES = (
    SEARCH_FILE,
    "statistics*.npz",
    "channels-*.npz",
    "adaround-*.npz",
    "fit-*.json",
    ".*.partial-*",
)


def work_folder(out: Path) -> Path:
    """Return where the work towards `out` is kept until it is there."""
    target = out.resolve()
    return target.parent / f"{target.name}.work"


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Keep other runs out of a work folder: the first to end would remove what they have done.

    Raises StorageError where another one is in it. An empty folder does not stay. What ends the run
    before its end is told, as `kept_in`, where the work so far lies.
    """
    try:
        with only_process(work, wait=False):
            yield
    except BaseException as error:
        if work.is_dir():
            error.kept_in = work  # type: ignore[attr-defined]
        raise


def remove_work(work: Path) -> None:
    """Remove what runs kept in a work folder, and the folder unless somebody's files are in it."""
    for folder in (work / DRAFT_FOLDER, work / BALANCED_FOLDER):
        if (folder / DESCRIPTION).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for path in [path for pattern in _WORK_FILES for path in work.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        work.rmdir()
