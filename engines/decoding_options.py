"""How a model that writes token by token is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from speechquant.core.errors import OptionError


@dataclass(frozen=True)
class DecodingOptions:
    """How a Whisper model is asked.

    `language` None is the checkpoint's own, or else detected, `task` None its own or transcribe.
    With `word_times` it tells when each word is said, and timestamps are decoded.

    A chunk is decoded at the first of `temperatures`, and at the next where its text compresses by
    more than `most_compression`, as loops do, or where its mean log probability is below
    `least_log_probability`. It is silent where that is so and the model takes it for no speech with
    more than `most_no_speech`.

    `beams` texts are followed at a temperature of 0, and the one with the highest mean log
    probability is taken; 1 is greedy.

    A chunk is decoded as the continuation of `initial_prompt`, and with `previous_text` of what was
    heard in the chunks before; both together are half of what the decoder can hold at most.

    Where a segment has fewer than `least_tokens_per_second` of speech, it is decoded again alone; 0
    is never.

    With `vad`, which is for models of all families, silence is left out: audio is cut at pauses,
    and its pieces are decoded together.
    """

    language: str | None = None
    task: str | None = None
    timestamps: bool = False
    word_times: bool = False
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    most_compression: float = 2.4
    least_log_probability: float = -1.0
    most_no_speech: float = 0.6
    beams: int = 1
    initial_prompt: str | None = None
    previous_text: bool = False
    least_tokens_per_second: float = 1.0
    vad: bool = False

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= value < math.inf for value in self.temperatures):
            raise OptionError("temperatures are needed, finite ones of at least 0")
        if self.previous_text and self.vad:
            raise OptionError(
                "previous text and VAD: the pieces between pauses are decoded together, before one "
                "another's text is known; leave one of both away"
            )
        if not 0 <= self.least_tokens_per_second < math.inf:
            raise OptionError("least_tokens_per_second is a number of at least 0")
        if self.beams < 1:
            raise OptionError(f"{self.beams} beams; give at least 1")


# A trial that writes loops would be decoded six times over, and by chance; one that skips speech
# is to be seen to do so.
GREEDY = DecodingOptions(temperatures=(0.0,), least_tokens_per_second=0.0)
