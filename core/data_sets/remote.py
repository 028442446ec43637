"""Data sets behind URIs such as s3:// and hf://, copied once into the cache folder by fsspec."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from speechquant.core.errors import ManifestError, MissingPackageError, SpeechquantError, one_line
from speechquant.core.files import cache_folder, is_file, new_file

log = logging.getLogger(__name__)

# What takes so long to copy that it is said.
_LARGE_BYTES = 20_000_000


def is_uri(name: str) -> bool:
    """Return whether a name is of a file that fsspec opens."""
    return "://" in name


def copied_files(patterns: Sequence[str], name: str) -> tuple[Path | None, dict[Path, str]]:
    """Return the copy of a folder, or the copies of files with their URIs, in order.

    Raises ManifestError where nothing is there, and MissingPackageError.
    """
    copies: dict[Path, str] = {}
    for pattern in patterns:
        with _reading(pattern):
            files, place = _opened(pattern)
            if files.isdir(place):
                if len(patterns) > 1:
                    raise ManifestError(f"{name}: {pattern} is a folder; name one folder or files")
                return _copied_folder(files, place, name), {}
            # A question mark is no pattern in an address of the web.
            is_pattern = "*" in place or "[" in place
            found = sorted(files.glob(place)) if is_pattern else []
            uris = [files.unstrip_protocol(one) for one in found] if is_pattern else [pattern]
        copies.update({copied_file(uri): uri for uri in uris})
    if not copies:
        raise ManifestError(f"{name}: no file fits this pattern; check it")
    return None, copies


def copied_file(uri: str) -> Path:
    """Return the copy of a file, made where there is none of it as it is now."""
    with _reading(uri):
        files, place = _opened(uri)
        # What the file system says of it: its size and time, or a checksum.
        key = hashlib.sha256(f"{uri}\0{files.ukey(place)}".encode()).hexdigest()
        target = _copies() / key[:32] / PurePosixPath(place).name
        _copy(files, place, target)
    return target


def _copies() -> Path:
    return cache_folder() / "copies"


def _copied_folder(files: Any, place: str, name: str) -> Path:
    found = sorted(files.find(place))
    names = [PurePosixPath(one).relative_to(PurePosixPath(place)) for one in found]
    keys = [f"{inner}\0{files.ukey(one)}" for inner, one in zip(names, found, strict=True)]
    key = hashlib.sha256("\0".join([name, *keys]).encode()).hexdigest()
    folder = _copies() / key[:32] / PurePosixPath(place).name
    for inner, one in zip(names, found, strict=True):
        if ".." in inner.parts:
            raise ManifestError(f"{name}: a file in it is called {inner}; give it another name")
        _copy(files, one, folder / inner)
    return folder


def _copy(files: Any, place: str, target: Path) -> None:
    if is_file(target):
        return
    announced = files.info(place).get("size")
    if (announced or 0) >= _LARGE_BYTES:
        log.info("copying %s (%.0f MB) to %s", place, announced / 1e6, target)
    with new_file(target, force=True) as partial:
        files.get_file(place, str(partial))
        size = partial.stat().st_size
        if announced not in (None, size):
            raise ManifestError(
                f"{place}: {announced} bytes announced, {size} came; run the same command again"
            )


def _opened(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI and what it calls the place."""
    try:
        import fsspec.core
    except ImportError as error:
        raise MissingPackageError(
            f"{uri}: URIs need the package fsspec: pip install 'speechquant[data]'"
        ) from error
    try:
        files, place = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise MissingPackageError(f"{uri}: {one_line(error)}") from error
    return files, str(place)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Turn what a file system raises, which may be an error of its own kind, into ManifestError."""
    try:
        yield
    except SpeechquantError:
        raise
    except FileNotFoundError as error:
        raise ManifestError(f"{uri}: no such data; check the URI") from error
    except Exception as error:
        raise ManifestError(
            f"{uri}: cannot be read ({one_line(error)}); check the URI and your access to it"
        ) from error
