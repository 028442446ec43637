"""lhotse's CutSets: cuts.jsonl.gz with recordings as files, and Shar folders with them in tars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from speechquant.core.audio import AUDIO_SUFFIXES, AudioFile
from speechquant.core.data_sets.json_lines import first_row, rows_of
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.data_sets.splits import refuse_splits
from speechquant.core.data_sets.tar_files import members_of
from speechquant.core.errors import ManifestError
from speechquant.core.files import is_file
from speechquant.core.manifests import ListedClip, seconds_in

_JSONL, _GZ = ".jsonl", ".jsonl.gz"
_MONO_CUT = "MonoCut"
_FILE, _IN_TAR = "file", "shar"
# A change of the rate alone is what reading does anyway.
_HARMLESS_TRANSFORM = "Resample"


def _files(source: Source) -> list[Path]:
    if source.files:
        return list(source.files)
    plain = source.inside(f"cuts*{_JSONL}")
    # A file beside its compressed self is listed once.
    packed = [path for path in source.inside(f"cuts*{_GZ}") if path.with_suffix("") not in plain]
    return plain + packed


def _is_mine(source: Source) -> bool:
    if source.folder is not None or source.ends_with(_GZ):
        return bool(_files(source))
    is_lines = source.ends_with(_JSONL)
    return is_lines and str(first_row(source.files[0]).get("type", "")).endswith("Cut")


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    files = _files(source)
    refuse_splits(source, files)
    for path in files:
        recordings = _Recordings(source, path)
        for where, row in rows_of(path):
            yield _clip(row, where, recordings)


class _Recordings:
    """Where the audio of a file of cuts is."""

    def __init__(self, source: Source, cuts: Path) -> None:
        self._source, self._cuts = source, cuts
        self._members: dict[str, AudioFile] | None = None

    def file(self, name: str) -> AudioFile:
        """Return a file by its name, beside the cuts or where the command runs."""
        found = self._source.beside(self._cuts, name)
        return Path(name) if not is_file(found) and is_file(Path(name)) else found

    def member(self, cut: str, where: str) -> AudioFile:
        """Return the file of a cut in the tar of the same number; raises ManifestError."""
        if self._members is None:
            name = self._cuts.name.replace("cuts", "recording", 1)
            tar = self._source.beside(
                self._cuts, name.removesuffix(".gz").removesuffix(_JSONL) + ".tar"
            )
            if not is_file(tar):
                raise ManifestError(
                    f"{where}: its audio is in {tar}, which is missing; copy it there"
                )
            self._members = {
                str(PurePosixPath(one.name).with_suffix("")): one
                for one in members_of(tar)
                if PurePosixPath(one.name).suffix in AUDIO_SUFFIXES
            }
        if cut not in self._members:
            raise ManifestError(f"{where}: no audio of the cut {cut!r} in its tar; copy it again")
        return self._members[cut]


def _clip(cut: Mapping[str, Any], where: str, recordings: _Recordings) -> ListedClip:
    kind = cut.get("type")
    if kind != _MONO_CUT:
        raise ManifestError(
            f"{where}: a {kind if isinstance(kind, str) else 'line without a type'}; only MonoCut "
            "is read: save the mixed audio with lhotse's save_audios"
        )
    recording = _object(cut.get("recording"), "recording", where)
    source = _source_of(recording, cut.get("channel"), where)
    if source.get("type") == _IN_TAR:
        file = recordings.member(str(cut.get("id")), where)
    else:
        file = recordings.file(str(source["source"]))
    said = [_object(one, "supervision", where) for one in _list(cut, "supervisions", where)]
    texts = [one["text"] for one in said if isinstance(one.get("text"), str)]
    speakers = {one["speaker"] for one in said if isinstance(one.get("speaker"), str)}
    return ListedClip(
        where,
        file,
        " ".join(texts) if texts else None,
        speakers.pop() if len(speakers) == 1 else None,
        seconds_in(cut, "start", where),
        seconds_in(cut, "duration", where),
    )


def _source_of(recording: Mapping[str, Any], channel: object, where: str) -> Mapping[str, Any]:
    """Return the one source of a recording that is read; raises ManifestError."""
    transforms = [_object(one, "transform", where) for one in _list(recording, "transforms", where)]
    names = [str(one.get("name")) for one in transforms]
    if any(name != _HARMLESS_TRANSFORM for name in names):
        raise ManifestError(
            f"{where}: its recording is changed by {', '.join(names)} when lhotse reads it; save "
            "it with lhotse's save_audios"
        )
    sources = [_object(one, "source", where) for one in _list(recording, "sources", where)]
    channels = [_list(one, "channels", where) for one in sources]
    fitting = [
        one
        for one, its in zip(sources, channels, strict=True)
        if its == [channel] or (len(its) < 2 and channel is None)
    ]
    if len(fitting) != 1:
        raise ManifestError(
            f"{where}: takes channel {channel} of several in one file; save each channel as a file"
        )
    kind = fitting[0].get("type")
    if kind not in (_FILE, _IN_TAR) or not isinstance(fitting[0].get("source"), str):
        raise ManifestError(
            f"{where}: its recording is of the type {kind!r}, which is not read (a command is "
            "never run); save it as a file with lhotse's save_audios"
        )
    return fitting[0]


def _list(row: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = row.get(key)
    if value is not None and not isinstance(value, list):
        raise ManifestError(f"{where}: its {key} are no list; write the cuts again")
    return value or []


def _object(value: object, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: its {name} is no JSON object; write the cuts again")
    return value


LHOTSE = DataFormat("lhotse cuts or Shar folder", _is_mine, _clips)
