"""Folders that the library `datasets` saved to disk: Arrow files, mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from speechquant.core.data_sets.arrow_tables import (
    TableCell,
    arrow_errors,
    clips_of_rows,
    columns_of,
)
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.errors import ManifestError
from speechquant.core.files import read_text
from speechquant.core.manifests import ListedClip

_SUFFIX = ".arrow"
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_FILE_MAGIC, _STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True, slots=True)
class ArrowCell(TableCell):
    """The audio in a row of an Arrow file."""

    def cell(self) -> Mapping[str, Any] | None:
        """Return the bytes, None where the row only names a file; no cell where it has neither."""
        status = self.path.stat()
        table = _mapped(self.path, status.st_size, status.st_mtime_ns)
        found: Mapping[str, Any] | None = table.column(self.column)[self.row].as_py()
        return found


@lru_cache(maxsize=16)
def _mapped(path: Path, size: int, modified_ns: int) -> Any:
    """Return the table of a file, none of which is read before it is asked for."""
    import pyarrow as pa

    with path.open("rb") as file:
        is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        file.seek(max(0, size - len(_STREAM_END)))
        if not is_file and file.read() != _STREAM_END:
            raise ManifestError(
                f"{path}: truncated: it does not end as an Arrow file; copy it again"
            )
    mapped = pa.memory_map(str(path))
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).read_all()


def _is_mine(source: Source) -> bool:
    return source.ends_with(_SUFFIX) or bool(source.inside(_STATE) or source.inside(_SPLITS))


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    for path in source.files or _files_in(source.folder or Path()):
        with arrow_errors(ManifestError, str(path)):
            status = path.stat()
            table = _mapped(path, status.st_size, status.st_mtime_ns)
            columns = columns_of(table.schema, str(path), require_text=require_text)
            first = 0
            for rows in table.to_batches():
                # Else an offset that points elsewhere is followed, beyond what is mapped too.
                rows.validate(full=True)
                span = range(first, first + rows.num_rows)
                yield from clips_of_rows(path, rows, span, columns, ArrowCell)
                first = span.stop


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a saved data set in their order; raises ManifestError."""
    if (folder / _SPLITS).is_file():
        splits = _described(folder / _SPLITS, "splits")
        if len(splits) != 1:
            raise ManifestError(
                f"{folder}: holds the splits {', '.join(map(str, splits))}; name one, such as "
                f"{folder / str(splits[-1]) if splits else folder / 'test'}"
            )
        folder = folder / str(splits[0])
    listed = _described(folder / _STATE, "_data_files")
    names = [one.get("filename") if isinstance(one, dict) else None for one in listed]
    if not all(isinstance(name, str) for name in names):
        raise ManifestError(f"{folder / _STATE}: a file without a name in it; save the set again")
    return [folder / str(name) for name in names]


def _described(path: Path, key: str) -> list[Any]:
    """Return the list that a description has under `key`."""
    try:
        found = json.loads(read_text(path, ManifestError, "save the data set again"))[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path}: no list {key!r} in it; save the data set again") from error
    if not isinstance(found, list):
        raise ManifestError(f"{path}: no list {key!r} in it; save the data set again")
    return found


SAVED = DataFormat("saved datasets folder", _is_mine, _clips)
