"""Tables of texts that name audio files: Hugging Face's audiofolder and Common Voice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from speechquant.core.data_sets.json_lines import first_row, rows_of
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.data_sets.text_columns import text_column
from speechquant.core.errors import ManifestError, one_line
from speechquant.core.files import is_file, is_folder, read_text
from speechquant.core.manifests import ListedClip

_CSV, _JSONL, _TSV = ".csv", ".jsonl", ".tsv"
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_NAME = "file_name"
_CLIPS = "clips"

Rows = Iterator[tuple[str, Mapping[str, object]]]


def _rows(path: Path) -> Rows:
    """Yield where a row is and what it has; raises ManifestError."""
    if path.suffix == _JSONL:
        yield from rows_of(path)
        return
    text = read_text(path, ManifestError, "save it as UTF-8")
    # Common Voice quotes nothing, so a quotation mark in a sentence is one.
    reader = (
        csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        if path.suffix == _TSV
        else csv.DictReader(io.StringIO(text, newline=""))
    )
    try:
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise ManifestError(
            f"{path}:{reader.line_num}: broken table ({one_line(error)}); mend that line"
        ) from error


def _string(row: Mapping[str, object], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        names = ", ".join(str(name) for name in row if name is not None)
        raise ManifestError(f"{where}: no {key!r}; its columns are {names}; add it")
    return value


def _text(row: Mapping[str, object], where: str, require_text: bool) -> str | None:
    names = [str(name) for name in row if name is not None]
    column = text_column(names, where, require_text=require_text)
    value = None if column is None else row.get(column)
    return value.strip() if isinstance(value, str) else None


def _metadata(source: Source) -> list[Path]:
    if source.files:
        is_lines = source.ends_with(_JSONL) and _FILE_NAME in first_row(source.files[0])
        return list(source.files) if is_lines or source.ends_with(_CSV) else []
    return [path for name in _METADATA for path in source.inside(name)][:1]


def _audio_folder_clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    for path in _metadata(source):
        for where, row in _rows(path):
            file = source.beside(path, _string(row, _FILE_NAME, where))
            speaker = row.get("speaker_id")
            yield ListedClip(
                where,
                file,
                _text(row, where, require_text),
                None if speaker is None else str(speaker),
            )


def _is_common_voice(source: Source) -> bool:
    if source.folder is None:
        return source.ends_with(_TSV)
    return is_folder(source.folder / _CLIPS) and bool(source.inside(f"*{_TSV}"))


def _common_voice_clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    if source.folder is not None:
        names = ", ".join(path.name for path in source.inside(f"*{_TSV}"))
        raise ManifestError(f"{source}: a folder with the tables {names}; name one of them")
    for path in source.files:
        for where, row in _rows(path):
            name = _string(row, "path", where)
            if not is_file(path.parent / name):
                name = f"{_CLIPS}/{name}"
            speaker = row.get("client_id")
            yield ListedClip(
                where,
                source.beside(path, name),
                _text(row, where, require_text),
                speaker if isinstance(speaker, str) else None,
            )


AUDIO_FOLDER = DataFormat(
    "audiofolder", lambda source: bool(_metadata(source)), _audio_folder_clips
)
COMMON_VOICE = DataFormat("Common Voice TSV", _is_common_voice, _common_voice_clips)
