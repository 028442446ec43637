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
class Decoding:
    """How a segment came out of a model that writes token by token.

    `tokens` are the segment's. The rest is of the chunk it is in, which begins at `chunk_start`
    seconds: the temperature, the mean log probability of a token, how well the text compresses, and
    the probability that nothing is said.
    """

    tokens: tuple[int, ...]
    chunk_start: float
    temperature: float
    log_probability: float
    compression: float
    no_speech: float


@dataclass(frozen=True)
class Segment:
    """A stretch of text and when it was said, in seconds from the start of the clip."""

    text: str
    start: float
    end: float
    decoding: Decoding | None = None


@dataclass(frozen=True)
class Transcript:
    """What was heard in a clip: with the time of each word, or of each segment, as models tell.

    `language` is a code such as en, None where the model knows one language only.
    """

    text: str
    words: tuple[Word, ...] = ()
    segments: tuple[Segment, ...] = ()
    language: str | None = None
