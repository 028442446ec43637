"""Transcripts as OpenAI's API answers them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from speechquant.core.transcripts.cues import segments_of
from speechquant.core.transcripts.formats import Heard, as_srt, as_vtt
from speechquant.core.transcripts.languages import language_name
from speechquant.core.transcripts.records import Decoding, Segment, Transcript, Word
from speechquant.serve.fields import JSON, SEGMENT, SRT, TEXT, TRANSLATE, VTT, WORD, Asked

PLAIN_TEXT, JSON_TYPE = "text/plain; charset=utf-8", "application/json"
EVENTS_TYPE = "text/event-stream; charset=utf-8"
_FRAMES_PER_SECOND = 100
# Of models that tell no more than the text.
_NOT_DECODED = Decoding((), 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Answer:
    """The body of an answer and its type."""

    body: str
    media_type: str


def answer_of(asked: Asked, transcript: Transcript, seconds: float) -> Answer:
    """Return what a client asked for."""
    heard = Heard("", seconds, transcript)
    if asked.response_format == TEXT:
        return Answer(f"{transcript.text}\n", PLAIN_TEXT)
    if asked.response_format == SRT:
        return Answer(as_srt(heard), PLAIN_TEXT)
    if asked.response_format == VTT:
        return Answer(as_vtt(heard), PLAIN_TEXT)
    if asked.response_format == JSON:
        return _json({"text": transcript.text, "usage": _usage(seconds)})
    language = "en" if asked.task == TRANSLATE else transcript.language
    document = {
        "task": asked.task,
        "language": language_name(language),
        "duration": round(seconds, 3),
        "text": transcript.text,
        **_timed(asked, transcript, seconds),
        "usage": _usage(seconds),
    }
    return _json(document)


def error_event(body: Mapping[str, Any]) -> str:
    """Return the event that ends a stream which fails."""
    return _event(body)


class DeltaEvents:
    """The events of a stream while it goes on; segments are counted over all of them."""

    def __init__(self, asked: Asked, seconds: float) -> None:
        self._asked, self._seconds = asked, seconds
        self._before, self._segments = Transcript(""), 0

    def event(self, now: Transcript) -> str:
        """Return what was heard since the last event, nothing where nothing was.

        With verbose_json it also has the words and segments; OpenAI's has none.
        """
        before, self._before = self._before, now
        delta = now.text[len(commonprefix([before.text, now.text])) :]  # noqa: RUF071 - of letters
        if not delta:
            return ""
        event: dict[str, Any] = {"type": "transcript.text.delta", "delta": delta}
        if self._asked.response_format not in (JSON, TEXT):
            words, segments = now.words[len(before.words) :], now.segments[len(before.segments) :]
            news = Transcript(delta, words, segments, now.language)
            timed = _timed(self._asked, news, self._seconds, self._segments)
            self._segments += len(timed.get("segments", ()))
            event.update(timed)
        return _event(event)


def done_event(asked: Asked, transcript: Transcript, seconds: float) -> str:
    """Return the event that ends a stream."""
    event: dict[str, Any] = {"type": "transcript.text.done", "text": transcript.text}
    if asked.response_format not in (JSON, TEXT):
        event |= {"duration": round(seconds, 3), **_timed(asked, transcript, seconds)}
    return _event(event)


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _json(document: Mapping[str, Any]) -> Answer:
    return Answer(json.dumps(document, ensure_ascii=False), JSON_TYPE)


def _usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(seconds)}


def _timed(
    asked: Asked, transcript: Transcript, seconds: float, first: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Return the words and segments, whichever were asked for; segments count from `first`."""
    timed = {}
    if SEGMENT in asked.granularities:
        timed["segments"] = _segments(segments_of(transcript, seconds), first)
    if WORD in asked.granularities:
        timed["words"] = [_word(word) for word in transcript.words]
    return timed


def _word(word: Word) -> dict[str, Any]:
    return {"word": word.text, "start": word.start, "end": word.end}


def _segments(segments: Sequence[Segment], first: int) -> list[dict[str, Any]]:
    return [_segment(number, segment) for number, segment in enumerate(segments, first)]


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    how = segment.decoding or _NOT_DECODED
    text = segment.text.encode()
    return {
        "id": number,
        "seek": round(how.chunk_start * _FRAMES_PER_SECOND),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": list(how.tokens),
        "temperature": how.temperature,
        "avg_logprob": how.log_probability,
        "compression_ratio": how.compression or len(text) / len(zlib.compress(text)),
        "no_speech_prob": how.no_speech,
    }
