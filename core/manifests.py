"""Data sets: NeMo manifests and LibriSpeech folders, as lists of clips with their text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.audio import AUDIO_SUFFIXES
from speechquant.core.errors import ManifestError

TRANSCRIPT_SUFFIX = ".trans.txt"


@dataclass(frozen=True)
class LabelledClip:
    """One clip of a data set; `text`, `seconds` and `speaker` are None where the set has none."""

    path: Path
    text: str | None
    seconds: float | None = None
    speaker: str | None = None


def read_data_set(source: Path, *, require_text: bool = True) -> list[LabelledClip]:
    """Return the clips of a JSONL manifest or of a folder in LibriSpeech layout.

    Raises ManifestError where it is missing, malformed, empty, or names a file that is not there.
    """
    if source.is_dir():
        manifest = source / "manifest.jsonl"
        clips = (
            _clips_of_manifest(manifest, require_text)
            if manifest.is_file()
            else _clips_of_librispeech(source)
        )
    elif source.is_file():
        clips = _clips_of_manifest(source, require_text)
    else:
        raise ManifestError(
            f"{source}: no such data; give a JSONL manifest, a folder in LibriSpeech layout, "
            "or zoo:train, zoo:dev, zoo:test"
        )
    if not clips:
        raise ManifestError(f"{source}: no clip in it; give data with at least one clip")
    return clips


def _clips_of_manifest(manifest: Path, require_text: bool) -> list[LabelledClip]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{manifest}: not UTF-8 text; give a JSONL manifest") from error
    return [
        _clip_of_line(line, f"{manifest}:{number}", manifest.parent, require_text)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _clip_of_line(line: str, where: str, folder: Path, require_text: bool) -> LabelledClip:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{where}: broken JSON ({error.msg} at column {error.colno}); mend that line"
        ) from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: not a JSON object; a line is {{'audio_filepath': ...}}")
    needed = {"audio_filepath": str, "text": str} if require_text else {"audio_filepath": str}
    for key, kind in needed.items():
        if not isinstance(row.get(key), kind):
            raise ManifestError(f"{where}: no string under the key {key!r}; add it to that line")
    path = folder / row["audio_filepath"]
    if not path.is_file():
        raise ManifestError(f"{where}: no such audio file: {path}; mend the path or drop the line")
    return LabelledClip(path, row.get("text"), _seconds(row, where), row.get("speaker"))


def _seconds(row: dict[str, object], where: str) -> float | None:
    duration = row.get("duration")
    if duration is None:
        return None
    if not isinstance(duration, (int, float)) or isinstance(duration, bool):
        raise ManifestError(f"{where}: 'duration' is {duration!r}; give seconds or leave it out")
    return float(duration)


def _clips_of_librispeech(folder: Path) -> list[LabelledClip]:
    transcripts = sorted(folder.rglob(f"*{TRANSCRIPT_SUFFIX}"))
    if not transcripts:
        raise ManifestError(
            f"{folder}: neither a manifest.jsonl nor a *{TRANSCRIPT_SUFFIX} file in it; "
            "give a JSONL manifest or a folder in LibriSpeech layout"
        )
    return [clip for transcript in transcripts for clip in _clips_of_chapter(transcript)]


def _clips_of_chapter(transcript: Path) -> list[LabelledClip]:
    audio = {
        path.stem: path
        for path in transcript.parent.iterdir()
        if path.suffix.lower() in AUDIO_SUFFIXES
    }
    clips = []
    lines = transcript.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        name, _, text = line.partition(" ")
        if name not in audio:
            raise ManifestError(
                f"{transcript}:{number}: no audio file {name}.* beside it; copy it there"
            )
        clips.append(LabelledClip(audio[name], text, speaker=name.split("-")[0]))
    return clips
