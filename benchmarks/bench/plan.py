"""What a bench is to measure, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speechquant.benchmarks.bench.candidates import Candidate
from speechquant.benchmarks.bench.latency import PAUSE_SECONDS, REPEATS
from speechquant.core.errors import OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.core.text import normalizer
from speechquant.engines.decoding_options import DecodingOptions

LENGTHS_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
BATCHES = (1, 4, 8)
# What a recognizer puts into one call, and a Whisper model's: larger batches are never run.
LARGEST_CALL_SECONDS, LARGEST_TOKEN_CALL_SECONDS = 60.0, 240.0
LEAST_REPEATS = 3


@dataclass(frozen=True)
class Plan:
    """What is to be measured and how; `work` holds what is done until the report is there.

    With `counts_errors` false, or clips without texts, only speed and size are measured.
    """

    candidates: tuple[Candidate, ...]
    clips: tuple[LabelledClip, ...]
    data: str
    work: Path
    lengths_seconds: tuple[float, ...] = LENGTHS_SECONDS
    batches: tuple[int, ...] = BATCHES
    repeats: int = REPEATS
    threads: int | None = None
    normalizer: str = "basic"
    counts_errors: bool = True
    pause_seconds: float = PAUSE_SECONDS
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({candidate.sample_rate_hz for candidate in self.candidates}) != 1:
            raise OptionError("the models take different sample rates; bench them one by one")
        longest = max(candidate.longest_seconds for candidate in self.candidates)
        for seconds in self.lengths_seconds:
            if not 0 < seconds <= longest:
                raise OptionError(
                    f"a length of {seconds:g} s; give lengths above 0 and up to {longest:g} s, "
                    "the longest that such a model is run on"
                )
        if min(self.batches, default=0) < 1 or not self.lengths_seconds:
            raise OptionError("lengths and batches are needed, batches of at least 1")
        if not self.shapes:
            raise OptionError(
                f"every batch holds more than {self.largest_call_seconds:g} s of audio, which is "
                "never run; give a smaller batch or shorter lengths"
            )
        normalizer(self.normalizer)
        if self.repeats < LEAST_REPEATS:
            raise OptionError(
                f"{self.repeats} repeats say nothing about spread; give at least {LEAST_REPEATS}"
            )

    @property
    def largest_call_seconds(self) -> float:
        """The most audio of one batch that every candidate puts into one call."""
        are_all_token_by_token = all(one.decoding is not None for one in self.candidates)
        return LARGEST_TOKEN_CALL_SECONDS if are_all_token_by_token else LARGEST_CALL_SECONDS

    @property
    def decoding(self) -> str | None:
        """How models that write token by token are asked, None where there are none."""
        asked = [one.decoding for one in self.candidates if one.decoding is not None]
        return _words_of(asked[0]) if asked else None

    @property
    def shapes(self) -> list[tuple[float, int]]:
        """The lengths and batches that are run, the least memory first."""
        return [
            (seconds, batch)
            for batch in sorted(self.batches)
            for seconds in sorted(self.lengths_seconds)
            if batch == 1 or seconds * batch <= self.largest_call_seconds
        ]

    @property
    def has_text(self) -> bool:
        """Whether every clip says what is said in it, and any says a word."""
        words = normalizer(self.normalizer)
        texts = [clip.text for clip in self.clips]
        return None not in texts and any(words(text or "").split() for text in texts)

    def with_candidates(self, candidates: Sequence[Candidate], notes: Sequence[str]) -> Plan:
        """Return the plan for other candidates, `notes` added."""
        return replace(self, candidates=tuple(candidates), notes=(*self.notes, *notes))


def _words_of(decoding: DecodingOptions) -> str:
    language = decoding.language or "of the checkpoint, or detected"
    temperatures = ", ".join(f"{value:g}" for value in decoding.temperatures)
    task = decoding.task or "task of the checkpoint, or transcribe"
    return f"{task}; language {language}; temperatures {temperatures}"
