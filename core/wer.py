"""Word and character error rates as records, and how sure a difference between two of them is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RESAMPLES_AT_ONCE = 256  # bounds the index matrix: 256 x 10,000 clips are 20 MB


@dataclass(frozen=True)
class EditCounts:
    """The edits that turn one reference into its hypothesis."""

    substitutions: int
    insertions: int
    deletions: int
    reference_length: int

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions


@dataclass(frozen=True)
class ErrorRate:
    """The errors of a set of clips, kept per clip so that sets can be compared in pairs."""

    clips: tuple[EditCounts, ...]

    @cached_property
    def substitutions(self) -> int:
        """Units that were taken for another."""
        return sum(clip.substitutions for clip in self.clips)

    @cached_property
    def insertions(self) -> int:
        """Units that nobody said."""
        return sum(clip.insertions for clip in self.clips)

    @cached_property
    def deletions(self) -> int:
        """Units that were missed."""
        return sum(clip.deletions for clip in self.clips)

    @cached_property
    def reference_length(self) -> int:
        """Words or characters in all references."""
        return sum(clip.reference_length for clip in self.clips)

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per unit of reference; NaN where no reference has any."""
        return self.errors / self.reference_length if self.reference_length else float("nan")


@dataclass(frozen=True)
class DifferenceInterval:
    """The difference of two rates (second minus first) and the interval it lies in."""

    difference: float
    low: float
    high: float
    confidence: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def is_of_nothing(self) -> bool:
        """Whether no clip has other errors, so that the interval says nothing."""
        return self.difference == self.low == self.high == 0.0


def score_wer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the word errors of each clip."""
    return _score(references, hypotheses, by_word=True)


def score_cer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the character errors of each clip; a space is a character."""
    return _score(references, hypotheses, by_word=False)


def _score(references: Sequence[str], hypotheses: Sequence[str], *, by_word: bool) -> ErrorRate:
    pairs = zip(references, hypotheses, strict=True)
    return ErrorRate(tuple(_count_edits(r, h, by_word=by_word) for r, h in pairs))


def _count_edits(reference: str, hypothesis: str, *, by_word: bool) -> EditCounts:
    import jiwer

    said, heard = reference.split(), hypothesis.split()
    reference, hypothesis = " ".join(said), " ".join(heard)
    if not said:  # jiwer refuses an empty reference
        return EditCounts(0, len(heard) if by_word else len(hypothesis), 0, 0)
    output = (jiwer.process_words if by_word else jiwer.process_characters)(reference, hypothesis)
    return EditCounts(
        output.substitutions,
        output.insertions,
        output.deletions,
        output.hits + output.substitutions + output.deletions,
    )


def difference_interval(
    first: ErrorRate,
    second: ErrorRate,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> DifferenceInterval:
    """Return the paired-bootstrap interval of `second.rate - first.rate` over the same clips.

    The same clips are drawn for both, so what is hard for both cancels out. Raises ValueError
    where the two were not scored on the same references.
    """
    lengths = _column(first, "reference_length")
    if not np.array_equal(lengths, _column(second, "reference_length")) or not lengths.sum():
        raise ValueError("the two rates must be of the same, not empty, references")
    errors = _column(first, "errors"), _column(second, "errors")
    low, high = bootstrap_interval(
        lengths, *errors, confidence=confidence, resamples=resamples, seed=seed
    )
    return DifferenceInterval(second.rate - first.rate, low, high, confidence)


def rate_interval(rate: ErrorRate) -> DifferenceInterval:
    """Return a rate and the bootstrap interval that it lies in."""
    # The distance from a transcript without errors is the rate itself.
    perfect = tuple(EditCounts(0, 0, 0, clip.reference_length) for clip in rate.clips)
    return difference_interval(ErrorRate(perfect), rate)


def most_hidden(found: DifferenceInterval, rate: ErrorRate) -> float:
    """Return how large a rise these clips may hide: the upper end of the interval.

    Where no clip has other errors, a bootstrap finds 0 to 0, however few the clips are. The rule of
    three then gives the bound: n clips miss a share of clips with one more error each, with a
    probability of 1 - confidence.
    """
    if not found.is_of_nothing:
        return max(found.high, 0.0)
    clips = [clip for clip in rate.clips if clip.reference_length]
    share = 1.0 - math.pow(1.0 - found.confidence, 1.0 / len(clips))
    return share * len(clips) / rate.reference_length


def bootstrap_interval(
    lengths: ArrayLike,
    first_errors: ArrayLike,
    second_errors: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the paired-bootstrap interval of a difference of rates; clips have these lengths."""
    words = np.asarray(lengths, np.int64)
    change = np.asarray(second_errors, np.int64) - np.asarray(first_errors, np.int64)
    rng = np.random.default_rng(seed)
    differences = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.integers(0, len(words), (rows, len(words)))
        # A draw of nothing but empty references has no rate.
        differences.append(change[drawn].sum(axis=1) / np.maximum(words[drawn].sum(axis=1), 1))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(differences), [tail, 1.0 - tail])
    return float(low), float(high)


def _column(rate: ErrorRate, name: str) -> NDArray[np.int64]:
    return np.array([getattr(clip, name) for clip in rate.clips], np.int64)
