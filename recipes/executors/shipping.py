"""Bundles and audio on machines that do not have them: once to each, by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from speechquant.core.bundles import DESCRIPTION, ENGINE_DESCRIPTION
from speechquant.core.files import cache_folder, new_folder, only_process, sha256_of

PIECE_BYTES = 64 << 20
# From a reference to a piece to its bytes.
Fetch = Callable[[Any], bytes]


@dataclass(frozen=True)
class Needed:
    """What a task reads: the folder by the hash of its description, files by their sizes."""

    folder: Path
    description: str
    digest: str
    files: Mapping[Path, int]

    @classmethod
    def by(cls, folder: Path, files: Sequence[Path]) -> Needed:
        """Return what a task needs that names this folder and these files."""
        is_engine = (folder / ENGINE_DESCRIPTION).is_file()
        description = ENGINE_DESCRIPTION if is_engine else DESCRIPTION
        digest = _digest(folder / description)
        return cls(folder, description, digest, {path: path.stat().st_size for path in files})

    @property
    def cached_folder(self) -> Path:
        """Where the folder is kept on a machine that does not have it."""
        return cache_folder() / "shipped" / self.digest

    def find(self) -> Lacking:
        """Return what of it this machine lacks, neither in its place nor in the cache."""
        folder = next((f for f in (self.folder, self.cached_folder) if self._is_it(f)), None)
        missing = [path for path, size in self.files.items() if not _has_size(path, size)]
        return Lacking(folder, tuple(missing))

    def _is_it(self, folder: Path) -> bool:
        path = folder / self.description
        return path.is_file() and _digest(path) == self.digest


@dataclass(frozen=True)
class Lacking:
    """What a machine has of a task's folder, None for nothing, and the files that it lacks."""

    folder: Path | None
    files: tuple[Path, ...]


@dataclass(frozen=True)
class ShippedFile:
    """A file as references to its pieces; `name` is what it is kept under."""

    name: str
    pieces: tuple[Any, ...]


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def shipped(path: Path, name: str, put: Callable[[bytes], Any]) -> ShippedFile:
    """Return a file whose pieces are put where every machine can fetch them."""
    return ShippedFile(name, tuple(map(put, pieces_of(path))))


def shipped_folder(folder: Path, put: Callable[[bytes], Any]) -> list[ShippedFile]:
    """Return all files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [shipped(path, path.relative_to(folder).as_posix(), put) for path in paths]


def shipped_audio(path: Path, put: Callable[[bytes], Any]) -> ShippedFile:
    """Return a file that is kept under its hash."""
    return shipped(path, f"{sha256_of(path)}{path.suffix}", put)


def receive_folder(needed: Needed, files: Iterable[ShippedFile], fetch: Fetch) -> Path:
    """Return the folder in the cache, written first where it is not there.

    One process of the machine writes it; the others wait for that.
    """
    target = needed.cached_folder
    with only_process(target.with_suffix(".lock"), wait=True):
        if not target.is_dir():
            with new_folder(target, needed.description) as folder:
                for file in files:
                    _write(folder / PurePosixPath(file.name), file, fetch)
    return target


def receive_file(file: ShippedFile, fetch: Fetch) -> Path:
    """Return the file in the cache, written first where it is not there."""
    folder = cache_folder() / "shipped-files"
    target = folder / file.name
    with only_process(folder / f"{target.stem}.lock", wait=True):
        if not target.is_file():
            partial = target.with_name(f"{target.name}.partial")
            _write(partial, file, fetch)
            partial.replace(target)
    return target


def _write(path: Path, file: ShippedFile, fetch: Fetch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as opened:
        for piece in file.pieces:
            opened.write(fetch(piece))


def _digest(description: Path) -> str:
    return hashlib.sha256(description.read_bytes()).hexdigest()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
