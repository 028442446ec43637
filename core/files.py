"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.errors import OutputExistsError, SpeechquantError, StorageError
from speechquant.core.processes import is_running

if TYPE_CHECKING:
    from filelock import BaseFileLock

_READ_BYTES = 1 << 20
_OLD = "old-"
LOCK_FILE = ".speechquant-lock"
_LOCK_TRIES = 100
_UNWRITABLE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
        errno.EISDIR, errno.ELOOP,
        errno.EINVAL,  # a name that the file system does not allow, such as a:b on Windows
    }
)  # fmt: skip


def cache_folder() -> Path:
    """Return where made and copied data is kept; SPEECHQUANT_CACHE overrides the place."""
    configured = os.environ.get("SPEECHQUANT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "speechquant"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def reading_errors(kind: type[SpeechquantError], what: str) -> Iterator[None]:
    """Turn the operating system's refusal to read something into a `kind`, which names it."""
    try:
        yield
    except SpeechquantError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise kind(
            f"{what}: cannot be read ({reason}); check the path and its permissions"
        ) from error


def read_text(path: Path, kind: type[SpeechquantError], mend: str) -> str:
    """Return a UTF-8 text without its byte order mark; raises a `kind` that says how to mend it."""
    with reading_errors(kind, str(path)):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path}: not UTF-8 text; {mend}") from error


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False also for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises where a name is too long


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; False also for a name that none can have."""
    return os.path.isdir(path)  # noqa: PTH112 - as above


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `target` into a StorageError."""
    try:
        yield
    except SpeechquantError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{target}: the disk is full; free some room and run the same command again"
        elif error.errno in _UNWRITABLE:
            message = f"{target}: cannot be written ({error.strerror}); choose another place"
        else:
            raise
        raise StorageError(message) from error


def refuse_existing(target: Path, mark: str, *, force: bool) -> None:
    """Raise OutputExistsError where `target` is there and may not be replaced.

    With `force` an empty folder may be, and one that holds a file of the pattern `mark`, by which
    this program's own output is known: a mistyped OUT must not cost anybody a home folder.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputExistsError(f"{target}: already there; choose another name or add --force")
    is_own = target.is_dir() and (any(target.glob(mark)) or not any(target.iterdir()))
    if not is_own:
        raise OutputExistsError(
            f"{target}: there, and not made by this command (no {mark} in it), so --force leaves "
            "it alone; choose another name"
        )


def refuse_unwritable(target: Path) -> None:
    """Raise StorageError, before any work is done, where `target` could not be made."""
    folder = target.absolute().parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    # Not what `new_folder` makes: a killed run may have left that, with this process's number.
    probe = folder / f".{target.name}.probe-{os.getpid()}"
    with storage_errors(target):
        probe.mkdir(exist_ok=True)
        probe.rmdir()


@contextmanager
def only_process(folder: Path, *, wait: bool) -> Iterator[None]:
    """Make `folder` and keep other processes out of it, where they ask in the same way.

    Raises StorageError where another one is in it, or waits until it has left. A killed process is
    out of it at once. A folder that is empty in the end does not stay.
    """
    with storage_errors(folder):
        lock = _lock_in(folder, wait=wait)
    try:
        yield
    finally:
        # Removed while it is held: who waits for it sees that it has no name any more and makes
        # another one. Windows removes no open file; there the lock removes its own.
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def _lock_in(folder: Path, *, wait: bool) -> BaseFileLock:
    from filelock import FileLock, Timeout

    for tries_left in reversed(range(_LOCK_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK_FILE)
            lock.acquire(blocking=wait)
        except Timeout as error:
            raise StorageError(
                f"{folder}: another run is at work in it; wait for its end, or choose another name"
            ) from error
        except (FileNotFoundError, FileExistsError):
            # Most likely whoever left has just removed the folder.
            if not tries_left:
                raise
        else:
            break
    return lock


def _partial_prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _remove_leftovers(target: Path) -> None:
    # A run that was killed outright could not clean up after itself.
    prefix = _partial_prefix(target)
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        pid = leftover.name.rpartition("-")[2]
        if pid.isdigit() and _is_another_running(int(pid)):
            continue
        if leftover.name.startswith(f"{prefix}{_OLD}") and not target.exists():
            leftover.rename(target)  # killed between the two renames of a replacement
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _is_another_running(pid: int) -> bool:
    # In a container every run may have the same number.
    return pid != os.getpid() and is_running(pid)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync_file(path)
    _sync_folder(folder)


def _sync_file(path: Path) -> None:
    # Windows syncs only what is open for writing.
    with path.open("r+b" if sys.platform == "win32" else "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(target: Path, mark: str, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends, and vanishes when it fails.

    Raises OutputExistsError as `refuse_existing` does, before the block and again after it, and
    StorageError where the disk is full or not writable.
    """
    target = target.resolve()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        refuse_existing(target, mark, force=force)
        partial = target.parent / f"{_partial_prefix(target)}{os.getpid()}"
        partial.mkdir()
        try:
            yield partial
            _sync_tree(partial)
            refuse_existing(target, mark, force=force)
            _move_into_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        _sync_folder(target.parent)
        return
    # A folder cannot be renamed onto a full one, so the old one steps aside first.
    old = partial.with_name(f"{_partial_prefix(target)}{_OLD}{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(old)


@contextmanager
def new_file(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a path that becomes the file `target` when the block ends, and vanishes when it fails.

    Raises OutputExistsError where `target` is there and `force` is not given, or is a folder, and
    StorageError where the disk is full or not writable.
    """
    target = target.resolve()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_existing_file(target, force=force)
        partial = target.parent / f"{_partial_prefix(target)}{os.getpid()}"
        try:
            yield partial
            _sync_file(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(target.parent)


def refuse_existing_file(target: Path, *, force: bool) -> None:
    """Raise OutputExistsError where `target` is a folder, or is there without `force`."""
    if target.is_dir():
        raise OutputExistsError(f"{target}: is a folder; give the name of a file")
    if os.path.lexists(target) and not force:
        raise OutputExistsError(f"{target}: already there; choose another name or add --force")
