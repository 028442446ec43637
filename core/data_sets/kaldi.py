"""Kaldi's data folders: wav.scp, and text, segments and utt2spk where they are there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.errors import ManifestError
from speechquant.core.files import is_file
from speechquant.core.manifests import ListedClip, numbered_lines

_WAV, _TEXT, _SEGMENTS, _SPEAKERS = "wav.scp", "text", "segments", "utt2spk"


@dataclass(frozen=True)
class _Line:
    """What a file has for a name."""

    where: str
    value: str


def _table(path: Path) -> dict[str, _Line]:
    """Return the lines of a file by the name each begins with; none where it is missing."""
    table: dict[str, _Line] = {}
    for number, line in numbered_lines(path) if is_file(path) else ():
        name, *rest = line.split(maxsplit=1)
        where = f"{path}:{number}"
        if name in table:
            raise ManifestError(f"{where}: {name} a second time; keep one of the two lines")
        table[name] = _Line(where, rest[0].strip() if rest else "")
    return table


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    folder = source.folder or Path()
    recordings = _table(folder / _WAV)
    segments = _table(folder / _SEGMENTS)
    texts, speakers = _table(folder / _TEXT), _table(folder / _SPEAKERS)
    utterances = segments or recordings
    for name, line in texts.items():
        if name not in utterances:
            raise ManifestError(
                f"{line.where}: {name} is not in {_SEGMENTS if segments else _WAV}; add it or drop "
                "the line"
            )
    for name, line in utterances.items():
        begin, seconds, recording = None, None, name
        if segments:
            recording, begin, seconds = _span(line)
        if recording not in recordings:
            raise ManifestError(f"{line.where}: no recording {recording} in {_WAV}; add it there")
        yield ListedClip(
            line.where,
            _file(source, folder, recordings[recording]),
            texts[name].value if name in texts else None,
            speakers[name].value if name in speakers else None,
            begin,
            seconds,
        )


def _file(source: Source, folder: Path, line: _Line) -> Path:
    """Return the file that a line of wav.scp names, in the folder or where the command runs."""
    if line.value.endswith("|"):
        raise ManifestError(
            f"{line.where}: a command, which is never run; write its output to a file and name that"
        )
    found = source.beside(folder / _WAV, line.value)
    return Path(line.value) if not is_file(found) and is_file(Path(line.value)) else found


def _span(line: _Line) -> tuple[str, float, float | None]:
    """Return the recording of a segment, where it begins, and its seconds, None to the end."""
    try:
        recording, *times = line.value.split()[:3]
        begin, end = map(float, times)
    except ValueError:
        begin = end = math.nan
    if math.isfinite(begin) and begin >= 0:
        if end == -1:
            return recording, begin, None
        if begin < end < math.inf:
            return recording, begin, end - begin
    raise ManifestError(
        f"{line.where}: no segment: {line.value!r}; write the recording and where the segment "
        "begins and ends, in seconds"
    )


KALDI = DataFormat("Kaldi folder", lambda source: bool(source.inside(_WAV)), _clips)
