"""WebDataset's tar shards: the files of a clip share a name, as in 0001.flac and 0001.txt."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from speechquant.core.audio import AUDIO_SUFFIXES
from speechquant.core.audio_files.members import FileSlice
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.data_sets.splits import refuse_splits
from speechquant.core.data_sets.tar_files import members_of
from speechquant.core.errors import ManifestError
from speechquant.core.manifests import ListedClip, row_of

_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def _shards(source: Source) -> list[Path]:
    return list(source.files) if source.ends_with(*_SUFFIXES) else source.inside("*.tar")


def _is_mine(source: Source) -> bool:
    return bool(_shards(source))


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    shards = _shards(source)
    refuse_splits(source, shards)
    for shard in shards:
        for key, members in groupby(members_of(shard), _key):
            clip = _clip(f"{shard}, {key}", list(members))
            if clip is not None:
                yield clip


def _key(member: FileSlice) -> str:
    """Return what the files of a clip share: the name up to its first dot."""
    path = PurePosixPath(member.name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _clip(where: str, members: list[FileSlice]) -> ListedClip | None:
    audio = [one for one in members if PurePosixPath(one.name).suffix.lower() in AUDIO_SUFFIXES]
    if not audio:
        return None
    if len(audio) > 1:
        names = ", ".join(PurePosixPath(one.name).name for one in audio)
        raise ManifestError(f"{where}: {len(audio)} audio files of one name ({names}); keep one")
    text, speaker = None, None
    for member in members:
        suffix = PurePosixPath(member.name).suffix.lower()
        if suffix == ".txt":
            text = _text(member)
        elif suffix == ".json" and text is None:
            row = row_of(_text(member), str(member))
            text, speaker = _string(row.get("text")), _string(row.get("speaker"))
    return ListedClip(where, audio[0], text, speaker)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _text(member: FileSlice) -> str:
    try:
        return member.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{member}: not UTF-8 text; save it as UTF-8") from error


WEBDATASET = DataFormat("WebDataset tar shards", _is_mine, _clips)
