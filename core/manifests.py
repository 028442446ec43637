"""Data sets: NeMo manifests and LibriSpeech folders, as lists of clips with their text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.audio import AUDIO_SUFFIXES
from speechquant.core.errors import ManifestError
from speechquant.core.files import sha256_of

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
    return [
        _clip_of_line(line, f"{manifest}:{number}", manifest.parent, require_text)
        for number, line in _numbered_lines(manifest)
    ]


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    # Not splitlines(), which also splits at characters that JSON allows inside a string.
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _clip_of_line(line: str, where: str, folder: Path, require_text: bool) -> LabelledClip:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{where}: broken JSON ({error.msg} at column {error.colno}); mend that line"
        ) from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: not a JSON object; a line is {{'audio_filepath': ...}}")
    needed = {"audio_filepath", "text"} if require_text else {"audio_filepath"}
    for key in ("audio_filepath", "text", "speaker"):
        value = row.get(key)
        if not isinstance(value, str) and (key in needed or value is not None):
            raise ManifestError(f"{where}: no string under the key {key!r}; add it to that line")
    if row.get("offset"):
        raise ManifestError(
            f"{where}: 'offset' is {row['offset']!r}, but clips are read whole; cut the audio into "
            "one file a clip"
        )
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
    for number, line in _numbered_lines(transcript):
        name, _, text = line.partition(" ")
        if name not in audio:
            raise ManifestError(
                f"{transcript}:{number}: no audio file {name}.* beside it; copy it there"
            )
        clips.append(LabelledClip(audio[name], text.strip(), speaker=name.split("-")[0]))
    return clips


def clip_key(clip: LabelledClip) -> str:
    """Return a hash of the clip's audio file and text."""
    digest = hashlib.sha256(sha256_of(clip.path).encode())
    digest.update((clip.text or "").encode())
    return digest.hexdigest()[:16]


def data_key(clip_keys: Sequence[str]) -> str:
    """Return a hash of a whole data set in its order."""
    return hashlib.sha256(json.dumps(list(clip_keys)).encode()).hexdigest()
