"""What a recognizer returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word and when it was said, in seconds from the start of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of text and when it was said, in seconds from the start of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """What was heard in a clip: with the time of each word, or of each segment, as models tell.

    `language` is a code such as en, None where the model knows one language only.
    """

    text: str
    words: tuple[Word, ...] = ()
    segments: tuple[Segment, ...] = ()
    language: str | None = None
