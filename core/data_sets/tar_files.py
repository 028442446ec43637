"""Tar files as lists of their members, which are read where they lie."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from speechquant.core.audio_files.members import FileSlice
from speechquant.core.errors import ManifestError, one_line

log = logging.getLogger(__name__)

_BLOCK_BYTES = 512
_GZIP = b"\x1f\x8b"


def members_of(path: Path) -> Iterator[FileSlice]:
    """Yield the files in a tar in its order; raises ManifestError where it is damaged, OSError."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                # Else it holds what it knows of each until it is closed.
                tar.members.clear()  # type: ignore[attr-defined]
                if info.isfile() and not PurePosixPath(info.name).name.startswith("."):
                    if info.offset_data + info.size > size:
                        raise ManifestError(f"{path}: truncated inside {info.name}; copy it again")
                    yield FileSlice(path, info.name, info.offset_data, info.size)
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ManifestError(f"{path}: {_reason(path, error)}") from error


def _check_end(path: Path, end: int) -> None:
    """Complain where the list of members ends, at byte `end`, otherwise than a tar's does."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK_BYTES)
    if any(block):
        raise ManifestError(f"{path}: damaged at byte {end}; copy it again")
    if not block:
        # Some programs write no end mark.
        log.warning("warning: %s: no end mark, as of a tar that was cut; is the file whole?", path)


def _reason(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(len(_GZIP)) == _GZIP:
            return "compressed, so its clips cannot be read where they lie; unpack it with gunzip"
    return f"cannot be read as a tar file ({one_line(error)}); copy it again"
