"""Files with a JSON object a line, compressed or not, read a line at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechquant.core.errors import ManifestError
from speechquant.core.manifests import row_of


def rows_of(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where a line is and what it has; raises ManifestError, OSError."""
    for where, line in _lines(path):
        yield where, row_of(line, where)


def first_row(path: Path) -> Mapping[str, Any]:
    """Return what the first line has, nothing where it is broken."""
    try:
        return next(rows_of(path))[1]
    except (StopIteration, ManifestError):
        return {}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}:{number}: not UTF-8 text; save it as UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(
            f"{path}: truncated or damaged behind line {number}; copy it again"
        ) from error
