"""StableQuant's Algorithm 1: every trial on every utterance.

Which activations a trial rounds is the caller's: the paper's are outputs of layers, an engine's are
inputs of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechquant.calibrators.clip_candidates import CLIP_PERCENTS, Candidates
from speechquant.core.errors import CalibrationError
from speechquant.core.progress import OnStep
from speechquant.core.scales import ScaleTable
from speechquant.core.scoring import Job, Score, Scorer, Trial
from speechquant.core.wer import bootstrap_interval

GAMMA_POINTS = 0.25


@dataclass(frozen=True)
class LayerEffect:
    """Stage 1: the word errors that a layer alone adds to so many utterances.

    `points` is what it adds to the WER of the whole development set, in percentage points: an
    estimate where not all utterances were heard. `interval` is its paired-bootstrap 95 % interval
    where all were.
    """

    layer: str
    added_errors: int
    words: int
    utterances: int
    points: float
    clipped: bool
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class PercentileScore:
    """Stage 2: the word errors of a p in so many utterances.

    `rate` is its WER on the whole development set: an estimate where not all were heard.
    """

    percent: float
    errors: int
    words: int
    utterances: int
    rate: float


@dataclass(frozen=True)
class SearchResult:
    """What a search chose, what it saw, and the utterance evaluations that it asked for."""

    table: ScaleTable
    layers: tuple[LayerEffect, ...]
    percentiles: tuple[PercentileScore, ...]
    utterances: int
    words: int
    gamma_points: float
    float_errors: int
    asked: int

    @property
    def exhaustive_evaluations(self) -> int:
        """What Algorithm 1 costs: float, every layer and every p on every utterance."""
        return (1 + len(self.layers) + len(CLIP_PERCENTS)) * self.utterances


def total_errors(scores: Sequence[Score]) -> int:
    """Return the word errors of several utterances."""
    return sum(score.errors for score in scores)


def total_words(scores: Sequence[Score]) -> int:
    """Return the words that were said; raises CalibrationError where there are none."""
    words = sum(score.words for score in scores)
    if words == 0:
        raise CalibrationError(
            "the development set has no words to compare with; give --dev a set with texts"
        )
    return words


def points_interval(first: Sequence[Score], second: Sequence[Score]) -> tuple[float, float]:
    """Return the 95 % interval of what the second scores add to WER, in points."""
    errors = [[score.errors for score in scores] for scores in (first, second)]
    words = [score.words for score in first]
    low, high = bootstrap_interval(words, *errors)
    return 100 * low, 100 * high


def search_exhaustively(
    candidates: Candidates,
    scorer: Scorer,
    utterances: int,
    *,
    gamma_points: float = GAMMA_POINTS,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Return S, p and all scores of Algorithm 1 over the utterances 0..utterances-1."""
    layers = candidates.layer_names
    trials = 1 + len(layers) + len(CLIP_PERCENTS)
    done = iter(range(1, trials * utterances + 1))

    def score_all(trials_of_stage: Sequence[Trial]) -> list[list[Score]]:
        """Return the scores of each trial; all are asked for at once, so that no worker waits."""
        jobs = [Job(trial, place) for trial in trials_of_stage for place in range(utterances)]
        scores = []
        for score in scorer.score(jobs):
            scores.append(score)
            if on_step is not None:
                on_step(next(done), trials * utterances)
        return [scores[start : start + utterances] for start in range(0, len(jobs), utterances)]

    unquantized, *alone = score_all(
        [candidates.unquantized(), *map(candidates.layer_alone, layers)]
    )
    words, float_errors = total_words(unquantized), total_errors(unquantized)
    effects = []
    for layer, scores in zip(layers, alone, strict=True):
        added = total_errors(scores) - float_errors
        points = 100 * added / words
        interval = points_interval(unquantized, scores)
        is_clipped = points > gamma_points
        effects.append(LayerEffect(layer, added, words, utterances, points, is_clipped, interval))
    clipped_layers = [effect.layer for effect in effects if effect.clipped]
    of_percents = score_all([candidates.clipped(clipped_layers, p) for p in CLIP_PERCENTS])
    scored = []
    for percent, scores in zip(CLIP_PERCENTS, of_percents, strict=True):
        errors = total_errors(scores)
        scored.append(PercentileScore(percent, errors, words, utterances, errors / words))
    best = min(scored, key=lambda score: (score.errors, score.percent))
    return SearchResult(
        table=candidates.clipped(clipped_layers, best.percent).table,
        layers=tuple(effects),
        percentiles=tuple(scored),
        utterances=utterances,
        words=words,
        gamma_points=gamma_points,
        float_errors=float_errors,
        asked=trials * utterances,
    )
