"""Parquet files with Hugging Face's audio column, read a row group at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from speechquant.core.data_sets.arrow_tables import (
    TableCell,
    arrow_errors,
    clips_of_rows,
    columns_of,
)
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.data_sets.splits import refuse_splits
from speechquant.core.errors import ManifestError
from speechquant.core.manifests import ListedClip

_SUFFIX = ".parquet"
# A Parquet file is read by one thread at a time.
_LOCK = Lock()


@dataclass(frozen=True, slots=True)
class ParquetCell(TableCell):
    """The audio in a row of a Parquet file; the last row group that was read is kept."""

    def cell(self) -> Mapping[str, Any] | None:
        """Return the bytes, None where the row only names a file; no cell where it has neither."""
        status = self.path.stat()
        with _LOCK:
            opened = _opened(self.path, status.st_size, status.st_mtime_ns)
            group = bisect_right(opened.first_rows, self.row) - 1
            cells = _row_group(opened, group, f"{self.column}.bytes", self.column)
            found: Mapping[str, Any] | None = cells[self.row - opened.first_rows[group]].as_py()
            return found


@dataclass(frozen=True, eq=False)
class _Opened:
    """An open file and the first row of each of its row groups."""

    file: Any
    first_rows: tuple[int, ...]


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, modified_ns: int) -> _Opened:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups = range(file.metadata.num_row_groups)
    counts = [file.metadata.row_group(group).num_rows for group in groups]
    return _Opened(file, tuple(accumulate(counts[:-1], initial=0)))


@lru_cache(maxsize=1)
def _row_group(opened: _Opened, group: int, content: str, column: str) -> Any:
    return opened.file.read_row_group(group, columns=[content], use_threads=False).column(column)


def _files(source: Source) -> list[Path]:
    if source.ends_with(_SUFFIX):
        return list(source.files)
    # Repositories of Hugging Face have them in a folder `data`.
    return source.inside(f"*{_SUFFIX}") or source.inside(f"data/*{_SUFFIX}")


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    files = _files(source)
    refuse_splits(source, files)
    for path in files:
        with arrow_errors(ManifestError, str(path)):
            yield from _clips_of_file(path, require_text)


def _clips_of_file(path: Path, require_text: bool) -> Iterator[ListedClip]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = columns_of(file.schema_arrow, str(path), require_text=require_text)
        first = 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            rows = file.read_row_group(group, columns=columns.listed, use_threads=False)
            yield from clips_of_rows(path, rows, range(first, first + count), columns, ParquetCell)
            first += count


PARQUET = DataFormat("Parquet with audio", lambda source: bool(_files(source)), _clips)
