"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechquant.core.errors import OutputExistsError, StorageError

_READ_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `target` into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{target}: the disk is full; free some room and run the same command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            message = f"{target}: cannot be written ({error.strerror}); choose another place"
        else:
            raise
        raise StorageError(message) from error


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise OutputExistsError where `target` is there and may not be replaced."""
    if target.exists() and not force:
        raise OutputExistsError(f"{target}: already there; choose another name or add --force")


def _partial_prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _remove_leftovers(target: Path) -> None:
    # A run that was killed outright could not clean up after itself.
    for leftover in target.parent.glob(f"{_partial_prefix(target)}*"):
        pid = leftover.name.rpartition("-")[2]
        if not (pid.isdigit() and _is_running(int(pid))):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends, and vanishes when it fails.

    Raises OutputExistsError before anything is done where `target` exists and `force` is not set,
    StorageError where the disk is full or not writable.
    """
    target = target.absolute()
    refuse_existing(target, force=force)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial = target.parent / f"{_partial_prefix(target)}{os.getpid()}"
        partial.mkdir()
        try:
            yield partial
            _sync_tree(partial)
            _move_into_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, target: Path) -> None:
    # A folder cannot be renamed onto a full one, so the old one steps aside first.
    old = partial.with_name(f"{_partial_prefix(target)}old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def write_file(target: Path, content: bytes) -> None:
    """Write `target` beside its place, then rename; raises StorageError."""
    partial = target.with_name(f"{_partial_prefix(target)}{os.getpid()}")
    with storage_errors(target):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
