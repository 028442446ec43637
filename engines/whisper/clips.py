"""A clip on its way through a Whisper model, chunk by chunk."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from speechquant.core.audio import Waveform
from speechquant.core.transcripts.records import Segment, Word
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.whisper.log_mel import Features


@dataclass(eq=False)
class Clip:
    """A clip and how far it has come; `place` is the frame at which its next chunk begins.

    `shown` are the tokens, timestamps among them, that the next chunk is shown where that is asked
    for: a Whisper that is shown text without times leaves out what it hears. `is_again` where the
    next chunk begins inside the one before, of which nothing was told. `options` are how the model
    is asked about it.
    """

    wave: Waveform
    frames: int
    is_short: bool
    options: DecodingOptions
    place: int = 0
    is_again: bool = False
    language: str | None = None
    segments: list[Segment] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    features: Features | None = None

    @property
    def share_done(self) -> float:
        """How much of it is decoded, of 1."""
        return min(1.0, self.place / self.frames)

    @property
    def is_done(self) -> bool:
        """Whether all of it is decoded."""
        return self.place >= self.frames

    @property
    def has_timestamps(self) -> bool:
        """Whether timestamps are decoded: where they are asked for, and to find the next chunk."""
        return self.options.timestamps or self.options.word_times or not self.is_short

    @property
    def key(self) -> Hashable:
        """What clips share whose chunks can be decoded together."""
        return self.options, self.has_timestamps
