"""What a search asks for and gets: the word errors of one way to quantize on one utterance.

A score is a pure function of (bundle, trial, utterance), so jobs may run anywhere and in any
order, and none needs to run twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from speechquant.core.scales import ScaleTable


@dataclass(frozen=True)
class Trial:
    """One way to quantize: the activations in `table`, and the weights where that is asked for."""

    table: ScaleTable
    quantizes_weights: bool
    label: str  # for people who read the log

    @cached_property
    def key(self) -> str:
        """What tells this trial from every other one of the same model."""
        return f"{self.table.key}-{'wa' if self.quantizes_weights else 'a'}"


@dataclass(frozen=True)
class Job:
    """A trial on one utterance, by its place in the development set."""

    trial: Trial
    utterance: int


@dataclass(frozen=True)
class Score:
    """What a trial made of an utterance.

    `labels` is the best label of each frame, a character each: two trials differ there long before
    they differ in a word.
    """

    errors: int
    words: int
    hypothesis: str
    labels: str


class JobRunner(Protocol):
    """What runs jobs: this process, several, a cluster."""

    def completed(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Score]]:
        """Yield the place of every job and its score as soon as it is there, in any order."""
        ...


class Scorer(Protocol):
    """What a search asks for scores."""

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        """Yield the score of every job, in their order, each as soon as it is there."""
        ...
