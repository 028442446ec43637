"""Transcripts as the files that other programs read: txt, srt, vtt, tsv, json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from speechquant.core.transcripts.cues import segments_of
from speechquant.core.transcripts.records import Transcript

JSON_FORMAT = "speechquant.transcript/1"


@dataclass(frozen=True)
class Heard:
    """A transcript, what it is of, and how long that is."""

    path: str
    seconds: float
    transcript: Transcript


def document_of(heard: Heard) -> dict[str, Any]:
    """Return what the JSON of a transcript says; docs/transcribe.md describes it."""
    transcript = heard.transcript
    return {
        "path": heard.path,
        "text": transcript.text,
        "seconds": heard.seconds,
        "words": [asdict(word) for word in transcript.words],
        "segments": [asdict(segment) for segment in transcript.segments],
        "language": transcript.language,
    }


def as_json(heard: Heard) -> str:
    """Return one JSON document."""
    document = {"format": JSON_FORMAT, **document_of(heard)}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def as_text(heard: Heard) -> str:
    """Return the text: a line a segment, where the model gives segments."""
    lines = [segment.text for segment in heard.transcript.segments] or [heard.transcript.text]
    return "".join(f"{_one_line(line)}\n" for line in lines)


def as_srt(heard: Heard) -> str:
    """Return SubRip subtitles."""
    cues = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_cue_text(cue.text)}\n"
        for number, cue in enumerate(segments_of(heard.transcript, heard.seconds), 1)
    ]
    return "\n".join(cues)


def as_vtt(heard: Heard) -> str:
    """Return WebVTT subtitles."""
    cues = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_escaped(_cue_text(cue.text))}\n"
        for cue in segments_of(heard.transcript, heard.seconds)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_tsv(heard: Heard) -> str:
    """Return a table of start and end, in milliseconds, and text."""
    rows = [
        f"{_milliseconds(cue.start)}\t{_milliseconds(cue.end)}\t{_one_line(cue.text)}\n"
        for cue in segments_of(heard.transcript, heard.seconds)
    ]
    return "".join(["start\tend\ttext\n", *rows])


# By the suffix of the file.
FORMATS: dict[str, Callable[[Heard], str]] = {
    "txt": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
}
# Those that say when something is said.
TIMED_FORMATS = frozenset(FORMATS) - {"txt"}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cue_text(text: str) -> str:
    # An arrow would be read as the times of another cue, an empty line as its end.
    return _one_line(text).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(seconds: float, point: str) -> str:
    rest, milliseconds = divmod(_milliseconds(seconds), 1000)
    minutes, second = divmod(rest, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{point}{milliseconds:03}"
