"""A heuristic for S and p at a tenth of Algorithm 1's cost, which mostly chooses others than it.

Words are a coarse measure: most utterances lose none, and it takes hundreds of them to tell two
trials apart. The best labels of the frames are a fine one. How many of them a trial changes from
the float model's is known well after a handful of utterances. So each trial's effect is estimated
from both: from the changed labels, at the price in errors that the trials show together, and from
its own words, which weigh the more the more of the utterances were heard, and alone count when all
were.

The price is not one number. The first labels to change are those that the model was unsure of, and
they cost next to nothing: from layer to layer, a changed label costs the more the more of them
there are. All percentiles change about as many, but what a low p rounds away and what a high p cuts
off are different labels: there the price is a straight line in p.

Every trial hears the utterances in one shuffled order, so that two trials are compared on the same
ones. A layer stops when its effect is on one side of gamma beyond doubt. Percentiles near each
other differ by less than the words of a development set can tell, and utterances differ by much
more: so every fifth percentile is heard, on as many utterances as the budget has left.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from speechquant.calibrators.clip_candidates import CLIP_PERCENTS, Candidates
from speechquant.calibrators.stablequant import (
    GAMMA_POINTS,
    LayerEffect,
    PercentileScore,
    SearchResult,
    total_errors,
    total_words,
)
from speechquant.core.progress import OnStep
from speechquant.core.scoring import Job, Score, Scorer, Trial

# What the search may ask for, as a share of what Algorithm 1 asks for.
BUDGET_SHARE = 0.1
# How much of it, the float model's scores apart, goes to the layers.
_LAYERS_SHARE = 0.4
_FIRST_UTTERANCES = 8
_GROWTH = 1.5
_HEARD_PERCENTS = CLIP_PERCENTS[::5]
# A layer's effect is beyond doubt this many standard deviations away from gamma.
_CERTAIN = 2.0
# How widely the layers differ in what a changed label costs: the shape of the gamma distribution.
_PRIOR_ERRORS = 4.0
# How much the price of a changed label may differ between p = 0 and p = 0.5, as a share of it: the
# standard deviation of what is believed of it before any word was heard.
_PRICE_TREND = 1.0
# How far off a percentile's errors predicted from changed labels are, as a share of them.
_PERCENTILE_MISFIT = 0.1
# In squared errors: without it a trial that changed no word yet would seem certain to change none.
_UNSEEN_VARIANCE = 1.0
_LEAST_DEVIATION = 0.01  # in errors an utterance
_SEED = 0


@dataclass(frozen=True)
class _Effect:
    """The errors that a trial adds to an utterance, on average over all of them, and how sure."""

    mean: float
    deviation: float


@dataclass
class _Race:
    """The utterances in their order, and what each trial made of the first of them."""

    scorer: Scorer
    order: Sequence[int]
    budget: int
    on_step: OnStep | None
    asked: int = 0
    heard: dict[str, list[Score]] = field(default_factory=dict)

    def hear(self, trials: Sequence[Trial], utterances: int) -> None:
        """Score each trial on the first `utterances` of the order; equal trials are one."""
        jobs = []
        for key, trial in {trial.key: trial for trial in trials}.items():
            done = len(self.heard.setdefault(key, []))
            jobs += [Job(trial, place) for place in self.order[done:utterances]]
        for job, score in zip(jobs, self.scorer.score(jobs), strict=True):
            self.heard[job.trial.key].append(score)
            self.asked += 1
            if self.on_step is not None:
                self.on_step(min(self.asked, self.budget), self.budget)

    def pairs(self, trial: Trial, beside: Trial) -> list[tuple[Score, Score]]:
        """Return the scores of both on the utterances that `trial` heard."""
        return list(zip(self.heard[trial.key], self.heard[beside.key], strict=False))


def _changed_labels(score: Score, unquantized: Score) -> int:
    return sum(a != b for a, b in zip(score.labels, unquantized.labels, strict=True))


def _layer_effects(race: _Race, trials: Sequence[Trial], unquantized: Trial) -> list[_Effect]:
    """Return the effect of every layer alone.

    What a changed label costs differs from layer to layer: it is taken to be gamma distributed
    around a price in proportion to how many labels the layer changes, and each layer's own errors
    over its own changed labels move it from there.
    """
    added, changed = _errors_and_labels(race, trials, unquantized)
    prices = _layer_prices(added, changed)
    effects = []
    for mine, labels, price in zip(added, changed, prices, strict=True):
        # As if _PRIOR_ERRORS at that price had been seen before any of its own.
        seen_labels = _PRIOR_ERRORS / price + sum(labels)
        errors_per_label = (_PRIOR_ERRORS + max(sum(mine), 0)) / seen_labels
        moved = sum(abs(errors) for errors in mine)
        deviation = math.sqrt(_PRIOR_ERRORS + moved) / seen_labels
        labels_each = sum(labels) / len(labels)
        unheard = 1 - len(mine) / len(race.order)
        mean = sum(mine) / len(mine) if unheard == 0 else errors_per_label * labels_each
        effects.append(_Effect(mean, deviation * labels_each * math.sqrt(unheard)))
    return effects


def _layer_prices(added: Sequence[Sequence[int]], changed: Sequence[Sequence[int]]) -> list[float]:
    """Return the errors that one of each layer's changed labels is expected to add."""
    # At least one label a layer and one error in all: none, or fewer than in float, is luck.
    labels_each = [max(sum(labels), 1) / len(labels) for labels in changed]
    squares = sum(each**2 * len(labels) for each, labels in zip(labels_each, changed, strict=True))
    growth = max(sum(map(sum, added)), 1) / squares
    return [growth * each for each in labels_each]


def _percentile_effects(
    race: _Race, trials: Mapping[float, Trial], unquantized: Trial
) -> list[_Effect]:
    """Return the effect of every percentile, from its changed labels and from its words."""
    added, changed = _errors_and_labels(race, list(trials.values()), unquantized)
    prices = _percentile_prices(list(trials), added, changed)
    effects = []
    for mine, labels, price in zip(added, changed, prices, strict=True):
        predicted = price * sum(labels) / len(labels)
        deviation = _PERCENTILE_MISFIT * abs(predicted) + _LEAST_DEVIATION
        own = _own_effect(mine, len(race.order))
        effects.append(_combined(own, _Effect(predicted, deviation)))
    return effects


def _percentile_prices(
    percents: Sequence[float], added: Sequence[Sequence[int]], changed: Sequence[Sequence[int]]
) -> list[float]:
    """Return the errors that a changed label adds at each p: a line through all that was heard."""
    labels = list(map(sum, changed))
    if not any(labels):
        return [0.0] * len(percents)
    price = max(sum(map(sum, added)), 1) / sum(labels)
    centre = sum(p * n for p, n in zip(percents, labels, strict=True)) / sum(labels)
    arms = [percent - centre for percent in percents]
    leverage = sum(arm**2 * n for arm, n in zip(arms, labels, strict=True))
    if leverage == 0.0:
        return [price] * len(percents)
    # One utterance gives one slope: what it loses at one p it mostly loses at the next one too.
    slopes = [
        sum(arm * (e - price * n) for arm, e, n in zip(arms, errors, counts, strict=True))
        / leverage
        for errors, counts in zip(zip(*added, strict=True), zip(*changed, strict=True), strict=True)
    ]
    believed = (_PRICE_TREND * price / (CLIP_PERCENTS[-1] - CLIP_PERCENTS[0])) ** 2
    slope = sum(slopes) * believed / (believed + sum(each**2 for each in slopes))
    return [price + slope * arm for arm in arms]


def _errors_and_labels(
    race: _Race, trials: Sequence[Trial], unquantized: Trial
) -> tuple[list[list[int]], list[list[int]]]:
    """Return what each trial added to the errors of each utterance, and the labels it changed."""
    added, changed = [], []
    for trial in trials:
        pairs = race.pairs(trial, unquantized)
        added.append([score.errors - other.errors for score, other in pairs])
        changed.append([_changed_labels(score, other) for score, other in pairs])
    return added, changed


def _own_effect(added: Sequence[int], utterances: int) -> _Effect:
    heard = len(added)
    mean = sum(added) / heard
    variance = (sum((errors - mean) ** 2 for errors in added) + _UNSEEN_VARIANCE) / heard
    # Of a set that was heard whole the mean is not an estimate any more.
    return _Effect(mean, math.sqrt(variance / heard * (1 - heard / utterances)))


def _combined(own: _Effect, predicted: _Effect) -> _Effect:
    if own.deviation == 0.0:
        return own
    own_weight, other_weight = own.deviation**-2, predicted.deviation**-2
    weight = own_weight + other_weight
    mean = (own_weight * own.mean + other_weight * predicted.mean) / weight
    return _Effect(mean, weight**-0.5)


def search_fast(
    candidates: Candidates,
    scorer: Scorer,
    utterances: int,
    *,
    gamma_points: float = GAMMA_POINTS,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Return S, p and what was seen, within BUDGET_SHARE of Algorithm 1's evaluations.

    Only a set so small that the share does not give each trial one utterance costs more: one each.
    """
    trials = 1 + len(candidates.layer_names) + len(CLIP_PERCENTS)
    order = list(range(utterances))
    random.Random(_SEED).shuffle(order)  # noqa: S311 - no secret, and the same at every start
    race = _Race(scorer, order, int(BUDGET_SHARE * trials * utterances), on_step)
    unquantized = candidates.unquantized()
    race.hear([unquantized], utterances)
    words = total_words(race.heard[unquantized.key])
    effects = _race_layers(race, candidates, gamma_points, words)
    clipped_layers = [effect.layer for effect in effects if effect.clipped]
    scored, best = _choose_percentile(race, candidates, clipped_layers, words)
    return SearchResult(
        table=candidates.clipped(clipped_layers, best).table,
        layers=effects,
        percentiles=scored,
        utterances=utterances,
        words=words,
        gamma_points=gamma_points,
        float_errors=total_errors(race.heard[unquantized.key]),
        asked=race.asked,
    )


def _race_layers(
    race: _Race, candidates: Candidates, gamma_points: float, words: int
) -> tuple[LayerEffect, ...]:
    """Return every layer's effect on a development set of so many words."""
    allowed_errors = gamma_points / 100 * words / len(race.order)
    unquantized = candidates.unquantized()
    trials = {layer: candidates.layer_alone(layer) for layer in candidates.layer_names}
    budget = race.asked + int(_LAYERS_SHARE * (race.budget - race.asked))
    undecided, heard = list(trials), 0
    while undecided:
        wanted = max(_FIRST_UTTERANCES, math.ceil(heard * (_GROWTH - 1)))
        affordable = max(budget - race.asked, 0) // len(undecided)
        more = min(wanted, affordable, len(race.order) - heard)
        if heard > 0 and more == 0:
            break
        heard += max(more, 1)
        race.hear([trials[layer] for layer in undecided], heard)
        effects = _layer_effects(race, list(trials.values()), unquantized)
        undecided = [
            layer
            for layer, effect in zip(trials, effects, strict=True)
            if layer in undecided
            and abs(effect.mean - allowed_errors) <= _CERTAIN * effect.deviation
        ]
    points_per_error = 100 * len(race.order) / words
    return tuple(
        _layer_effect(race, layer, trial, unquantized, effect.mean * points_per_error, gamma_points)
        for (layer, trial), effect in zip(trials.items(), effects, strict=True)
    )


def _layer_effect(
    race: _Race,
    layer: str,
    trial: Trial,
    unquantized: Trial,
    points: float,
    gamma_points: float,
) -> LayerEffect:
    pairs = race.pairs(trial, unquantized)
    added = sum(score.errors - other.errors for score, other in pairs)
    words = sum(score.words for score, _ in pairs)
    return LayerEffect(layer, added, words, len(pairs), points, points > gamma_points)


def _choose_percentile(
    race: _Race, candidates: Candidates, clipped_layers: Sequence[str], words: int
) -> tuple[tuple[PercentileScore, ...], float]:
    """Return what was heard of the percentiles and the one with the least errors."""
    unquantized = candidates.unquantized()
    trials = {p: candidates.clipped(clipped_layers, p) for p in _HEARD_PERCENTS}
    distinct = len({trial.key for trial in trials.values()})
    affordable = max(race.budget - race.asked, 0) // distinct
    race.hear(list(trials.values()), min(max(affordable, 1), len(race.order)))
    effects = _percentile_effects(race, trials, unquantized)
    float_errors = total_errors(race.heard[unquantized.key])
    scored = tuple(
        _percentile_score(
            race, percent, trial, (float_errors + effect.mean * len(race.order)) / words
        )
        for (percent, trial), effect in zip(trials.items(), effects, strict=True)
    )
    return scored, min(scored, key=lambda score: (score.rate, score.percent)).percent


def _percentile_score(race: _Race, percent: float, trial: Trial, rate: float) -> PercentileScore:
    scores = race.heard[trial.key]
    words = sum(score.words for score in scores)
    return PercentileScore(percent, total_errors(scores), words, len(scores), rate)
