"""The clips of data sets, what identifies them, and JSONL manifests in NeMo's convention."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from speechquant.core.audio import Audio, AudioFile, AudioPart, audio_seconds
from speechquant.core.audio_files.members import AudioMember
from speechquant.core.errors import AudioError, ClipError, ManifestError
from speechquant.core.files import is_file, read_text, sha256_of
from speechquant.core.plain import parsed

# By how much a manifest's seconds may miss the file's: twice what rounding to a tenth loses, and
# about what an mp3 encoder adds.
TOLERANCE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One clip of a data set; `text`, `seconds` and `speaker` are None where the set has none.

    It is the whole file where `offset_seconds` is None, else the part that begins there and lasts
    `seconds`, or to the file's end where these are None. `member` is the file where it lies inside
    another one, which is `path` then.
    """

    path: Path
    text: str | None
    seconds: float | None = None
    speaker: str | None = None
    offset_seconds: float | None = None
    member: AudioMember | None = None

    @property
    def file(self) -> AudioFile:
        """The whole file, alone or inside another one."""
        return self.path if self.member is None else self.member

    @property
    def audio(self) -> Audio:
        """What is to be read."""
        if self.offset_seconds is None:
            return self.file
        return AudioPart(self.file, self.offset_seconds, self.seconds)

    @property
    def stem(self) -> str:
        """The name of the audio file without its suffix."""
        return self.path.stem if self.member is None else PurePosixPath(self.member.name).stem


@dataclass(frozen=True, slots=True)
class ListedClip:
    """A clip as a data set lists it, at `where`, before its audio is looked for."""

    where: str
    file: AudioFile
    text: str | None
    speaker: str | None = None
    offset_seconds: float | None = None
    seconds: float | None = None


def labelled(listed: ListedClip) -> LabelledClip:
    """Return the clip; raises ClipError where its audio is missing or ends before the clip does."""
    where, file, text = listed.where, listed.file, listed.text
    if text is not None:
        _check_unicode(text, "text", where)
    if listed.speaker is not None:
        _check_unicode(listed.speaker, "speaker", where)
    if isinstance(file, Path) and not is_file(file):
        raise ClipError(f"{where}: no such audio file: {file}; mend the path or drop the line")
    offset, seconds = _part(file, listed.offset_seconds, listed.seconds, where)
    if isinstance(file, Path):
        return LabelledClip(file, text, seconds, listed.speaker, offset)
    return LabelledClip(file.path, text, seconds, listed.speaker, offset, file)


# From a file that lists others and a name in it to that other one.
Beside = Callable[[Path, str], Path]


def clips_of_manifest(
    manifest: Path, beside: Beside, *, require_text: bool
) -> Iterator[ListedClip]:
    """Yield the clips of a JSONL manifest; raises ManifestError."""
    for number, line in numbered_lines(manifest):
        where = f"{manifest}:{number}"
        row = row_of(line, where)
        needed = {"audio_filepath", "text"} if require_text else {"audio_filepath"}
        for key in ("audio_filepath", "text", "speaker"):
            value = row.get(key)
            if not isinstance(value, str) and (key in needed or value is not None):
                raise ManifestError(
                    f"{where}: no string under the key {key!r}; add it to that line"
                )
        yield ListedClip(
            where,
            beside(manifest, row["audio_filepath"]),
            row.get("text"),
            row.get("speaker"),
            seconds_in(row, "offset", where),
            seconds_in(row, "duration", where),
        )


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a UTF-8 text that are not blank, counted from 1; raises ManifestError."""
    text = read_text(path, ManifestError, "save it as UTF-8")
    # Not splitlines(), which also splits at characters that JSON allows inside a string.
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def row_of(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a line; raises ManifestError."""
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


def seconds_in(row: Mapping[str, object], key: str, where: str) -> float | None:
    """Return a number of seconds that a row may have; raises ManifestError where it is none."""
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
    file: AudioFile, offset: float | None, duration: float | None, where: str
) -> tuple[float | None, float | None]:
    """Return where a clip begins and how long it is, as a LabelledClip has them."""
    begin = offset or 0.0
    if begin == 0 and duration is None:
        return None, None
    length = _length(file, where)
    end = length if duration is None else begin + duration
    if begin >= length or end > length + TOLERANCE_SECONDS:
        raise ClipError(
            f"{where}: asks for {begin:g} to {end:g} s of {file}, which lasts {length:g} s; mend "
            "its times"
        )
    if begin == 0 and abs(end - length) <= TOLERANCE_SECONDS:
        return None, duration
    return begin, duration if end < length else None


def _length(file: AudioFile, where: str) -> float:
    try:
        return audio_seconds(file)
    except AudioError as error:
        raise ClipError(f"{where}: {error}") from error


def clip_key(clip: LabelledClip) -> str:
    """Return a hash of the clip's audio file, of the part that it is of it, and of its text.

    It is the same for a file inside another one as for the file alone.
    """
    digest = hashlib.sha256(_content_key(clip.file).encode())
    if clip.offset_seconds is not None:
        digest.update(f"\0{clip.offset_seconds} {clip.seconds}\0".encode())
    digest.update((clip.text or "").encode())
    return digest.hexdigest()[:16]


def _content_key(file: AudioFile) -> str:
    if isinstance(file, AudioMember):
        return hashlib.sha256(file.read()).hexdigest()
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns)


# A manifest may name a thousand parts of one file.
@lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, modified_ns: int) -> str:
    return sha256_of(path)


def data_key(clip_keys: Sequence[str]) -> str:
    """Return a hash of a whole data set in its order."""
    return hashlib.sha256(json.dumps(list(clip_keys)).encode()).hexdigest()
