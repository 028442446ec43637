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
    """

    language: str | None = None
    task: str | None = None
    timestamps: bool = False
    word_times: bool = False
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    most_compression: float = 2.4
    least_log_probability: float = -1.0
    most_no_speech: float = 0.6

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= value < math.inf for value in self.temperatures):
            raise OptionError("temperatures are needed, finite ones of at least 0")


# A trial that writes loops would be decoded six times over, and by chance.
GREEDY = DecodingOptions(temperatures=(0.0,))
