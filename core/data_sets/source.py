"""What a data set's name stands for: a folder, or files by name, glob, brace pattern or URI."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from speechquant.core.data_sets.remote import copied_file, copied_files, is_uri
from speechquant.core.errors import ManifestError
from speechquant.core.files import is_file, is_folder
from speechquant.core.manifests import ListedClip

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Source:
    """A folder, or files in order; `origins` has the URIs of those that were copied here."""

    name: str
    folder: Path | None
    files: tuple[Path, ...] = ()
    origins: Mapping[Path, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def ends_with(self, *suffixes: str) -> bool:
        """Return whether it is files, all with one of these suffixes."""
        return bool(self.files) and all(path.name.lower().endswith(suffixes) for path in self.files)

    def inside(self, pattern: str) -> list[Path]:
        """Return the files right in the folder that a pattern fits, in the order of their names."""
        if self.folder is None:
            return []
        # What macOS leaves beside files begins with a dot.
        found = (path for path in self.folder.glob(pattern) if not path.name.startswith("."))
        return sorted(path for path in found if is_file(path))

    def beside(self, listing: Path, name: str) -> Path:
        """Return the file that `listing` calls `name`, copied here first where it is elsewhere."""
        if is_uri(name):
            return copied_file(name)
        origin = self.origins.get(listing)
        if origin is None or Path(name).is_absolute():
            return listing.parent / name
        scheme, _, place = origin.partition("://")
        joined = posixpath.normpath(posixpath.join(posixpath.dirname(place), name))
        return copied_file(f"{scheme}://{joined}")


@dataclass(frozen=True)
class DataFormat:
    """A format: what users call it, whether a source is of it, and its clips as they are listed.

    `clips` takes the source and `require_text`, and raises ManifestError.
    """

    name: str
    is_mine: Callable[[Source], bool]
    clips: Callable[[Source, bool], Iterator[ListedClip]]


def source_of(name: str) -> Source:
    """Return what a name stands for; raises ManifestError where nothing is there."""
    if is_uri(name):
        folder, copies = copied_files(expanded(name), name)
        return Source(name, folder, tuple(copies), copies)
    if is_file(Path(name)):
        return Source(name, None, (Path(name),))
    if is_folder(Path(name)):
        return Source(name, Path(name))
    files = [path for pattern in expanded(name) for path in _files_of(pattern)]
    missing = [path for path in files if not is_file(path)]
    if missing:
        raise ManifestError(
            f"{missing[0]}: no such data; give a manifest, a folder, another kind of "
            "docs/data.md, or zoo:train, zoo:dev, zoo:test"
        )
    if not files:
        raise ManifestError(f"{name}: no file fits this pattern; check it")
    return Source(name, None, tuple(files))


def _files_of(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        return [Path(pattern)]
    return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - also absolute


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern with {000..004} or {a,b} stands for, in order."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [before + part + rest for part in _parts(braces[1]) for rest in expanded(after)]


def _parts(inner: str) -> list[str]:
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return inner.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    width = len(numbers[1])
    step = 1 if first <= last else -1
    return [f"{number:0{width}}" for number in range(first, last + step, step)]
