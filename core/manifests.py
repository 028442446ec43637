"""Data sets: NeMo manifests and LibriSpeech folders, as lists of clips with their text."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from speechquant.core.audio import AUDIO_SUFFIXES, Audio, AudioPart, audio_seconds
from speechquant.core.errors import AudioError, ManifestError
from speechquant.core.files import is_file, is_folder, read_text, reading_errors, sha256_of
from speechquant.core.plain import parsed

TRANSCRIPT_SUFFIX = ".trans.txt"
# By how much a manifest's seconds may miss the file's: twice what rounding to a tenth loses, and
# about what an mp3 encoder adds.
TOLERANCE_SECONDS = 0.1


@dataclass(frozen=True)
class LabelledClip:
    """One clip of a data set; `text`, `seconds` and `speaker` are None where the set has none.

    It is the whole file where `offset_seconds` is None, else the part that begins there and lasts
    `seconds`, or to the file's end where these are None.
    """

    path: Path
    text: str | None
    seconds: float | None = None
    speaker: str | None = None
    offset_seconds: float | None = None

    @property
    def audio(self) -> Audio:
        """What is to be read."""
        if self.offset_seconds is None:
            return self.path
        return AudioPart(self.path, self.offset_seconds, self.seconds)


def read_data_set(source: Path, *, require_text: bool = True) -> list[LabelledClip]:
    """Return the clips of a JSONL manifest or of a folder in LibriSpeech layout.

    Raises ManifestError where it is missing, malformed, empty, or names a file that is not there.
    """
    with reading_errors(ManifestError, str(source)):
        clips = _clips_of(source, require_text)
    if not clips:
        raise ManifestError(f"{source}: no clip in it; give data with at least one clip")
    return clips


def _clips_of(source: Path, require_text: bool) -> list[LabelledClip]:
    if is_file(source):
        return _clips_of_manifest(source, require_text)
    if not is_folder(source):
        raise ManifestError(
            f"{source}: no such data; give a JSONL manifest, a folder in LibriSpeech layout, "
            "or zoo:train, zoo:dev, zoo:test"
        )
    manifest = source / "manifest.jsonl"
    if is_file(manifest):
        return _clips_of_manifest(manifest, require_text)
    return _clips_of_librispeech(source)


def _clips_of_manifest(manifest: Path, require_text: bool) -> list[LabelledClip]:
    return [
        _clip_of_line(line, f"{manifest}:{number}", manifest.parent, require_text)
        for number, line in _numbered_lines(manifest)
    ]


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    text = read_text(path, ManifestError, "save it as UTF-8")
    # Not splitlines(), which also splits at characters that JSON allows inside a string.
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _clip_of_line(line: str, where: str, folder: Path, require_text: bool) -> LabelledClip:
    row = _row_of(line, where)
    needed = {"audio_filepath", "text"} if require_text else {"audio_filepath"}
    for key in ("audio_filepath", "text", "speaker"):
        value = row.get(key)
        if not isinstance(value, str) and (key in needed or value is not None):
            raise ManifestError(f"{where}: no string under the key {key!r}; add it to that line")
        if key != "audio_filepath" and value is not None:
            _check_unicode(value, key, where)
    path = folder / row["audio_filepath"]
    if not is_file(path):
        raise ManifestError(f"{where}: no such audio file: {path}; mend the path or drop the line")
    offset, seconds = _part(
        path, _seconds(row, "offset", where), _seconds(row, "duration", where), where
    )
    return LabelledClip(path, row.get("text"), seconds, row.get("speaker"), offset)


def _row_of(line: str, where: str) -> dict[str, Any]:
    try:
        row = parsed(line)
    except ValueError as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {error.colno}"
        raise ManifestError(f"{where}: broken JSON ({reason}); mend that line") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: not a JSON object; a line is {{'audio_filepath': ...}}")
    return row


def _check_unicode(text: str, key: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"{where}: {key!r} has half a character ({text[error.start]!a}); write that line again"
        ) from error


def _seconds(row: dict[str, object], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            seconds = float(value)
    if not 0 <= seconds < math.inf or (key == "duration" and seconds == 0):
        raise ManifestError(
            f"{where}: {key!r} is {reprlib.repr(value)}; give seconds or leave it out"
        )
    return seconds


def _part(
    path: Path, offset: float | None, duration: float | None, where: str
) -> tuple[float | None, float | None]:
    """Return where a clip begins and how long it is, as a LabelledClip has them."""
    begin = offset or 0.0
    if begin == 0 and duration is None:
        return None, None
    length = _length(path, where)
    end = length if duration is None else begin + duration
    if begin >= length or end > length + TOLERANCE_SECONDS:
        raise ManifestError(
            f"{where}: asks for {begin:g} to {end:g} s of {path}, which lasts {length:g} s; mend "
            "'offset' and 'duration'"
        )
    if begin == 0 and abs(end - length) <= TOLERANCE_SECONDS:
        return None, duration
    return begin, duration if end < length else None


def _length(path: Path, where: str) -> float:
    try:
        return audio_seconds(path)
    except AudioError as error:
        raise ManifestError(f"{where}: {error}") from error


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
    """Return a hash of the clip's audio file, of the part that it is of it, and of its text."""
    status = clip.path.stat()
    digest = hashlib.sha256(_sha256_of(clip.path, status.st_size, status.st_mtime_ns).encode())
    if clip.offset_seconds is not None:
        digest.update(f"\0{clip.offset_seconds} {clip.seconds}\0".encode())
    digest.update((clip.text or "").encode())
    return digest.hexdigest()[:16]


# A manifest may name a thousand parts of one file.
@lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, modified_ns: int) -> str:
    return sha256_of(path)


def data_key(clip_keys: Sequence[str]) -> str:
    """Return a hash of a whole data set in its order."""
    return hashlib.sha256(json.dumps(list(clip_keys)).encode()).hexdigest()
