"""Folders with a description that holds the hash of each of their files, and of itself."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechquant.core.errors import SpeechquantError
from speechquant.core.files import is_file, new_folder, read_text, reading_errors, sha256_of
from speechquant.core.plain import parsed


@dataclass(frozen=True)
class FolderKind:
    """What a folder is, which file describes it, and which command writes it."""

    name: str
    description: str
    format: str
    command: str
    error: type[SpeechquantError]

    @property
    def mend(self) -> str:
        """What to do about a damaged one."""
        return f'make it again with "{self.command}"'


def digest_of(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document of plain values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@contextmanager
def new_described_folder(
    target: Path, kind: FolderKind, document: Mapping[str, Any], *, force: bool = False
) -> Iterator[Path]:
    """Yield a folder to fill; when the block ends it is described, hashed and moved to `target`.

    Raises OutputExistsError or StorageError; then nothing is left behind.
    """
    with new_folder(target, kind.description, force=force) as folder:
        yield folder
        described: dict[str, Any] = {
            "format": kind.format,
            **document,
            "files": {
                path.relative_to(folder).as_posix(): sha256_of(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        described["sha256"] = digest_of(described)
        text = json.dumps(described, indent=1) + "\n"
        (folder / kind.description).write_text(text, encoding="utf-8")


def read_description(folder: Path, kind: FolderKind) -> dict[str, Any]:
    """Return the description, found unaltered; raises the kind's error."""
    path = folder / kind.description
    if not is_file(path):
        raise kind.error(
            f"{folder}: no {kind.description} in it, so it is no {kind.name}; "
            f'give a folder that "{kind.command}" wrote'
        )
    text = read_text(path, kind.error, kind.mend)
    try:
        document = parsed(text)
    except ValueError as error:
        raise kind.error(f"{path}: not valid JSON ({error}); {kind.mend}") from error
    if not isinstance(document, dict) or document.get("format") != kind.format:
        found = document.get("format") if isinstance(document, dict) else None
        raise kind.error(
            f"{path}: format {reprlib.repr(found)}, this version reads {kind.format!r}; {kind.mend}"
        )
    announced = document.pop("sha256", None)
    if announced != digest_of(document):
        raise kind.error(f"{path}: altered since it was written; {kind.mend}")
    return document


def check_files(folder: Path, files: Mapping[str, str], kind: FolderKind) -> None:
    """Raise the kind's error where a file is missing or is not the one that was described."""
    for name, announced in files.items():
        path = folder / name
        if not is_file(path):
            raise kind.error(f"{folder}: {name} is missing; {kind.mend}")
        with reading_errors(kind.error, str(path)):
            found = sha256_of(path)
        if found != announced:
            raise kind.error(
                f"{path}: altered or truncated since it was written "
                f"(its sha256 is no longer {announced[:12]}...); {kind.mend}"
            )


@contextmanager
def described_by(path: Path, kind: FolderKind) -> Iterator[None]:
    """Turn what `core.plain` finds off in a description into the kind's error."""
    try:
        yield
    except ValueError as error:
        raise kind.error(f"{path}: not as this version writes it ({error}); {kind.mend}") from error
