"""The fast search where words, labels and percentiles do not go together as they mostly do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from speechquant.calibrators.clip_candidates import CLIP_PERCENTS, Candidates
from speechquant.calibrators.fast_search import search_fast
from speechquant.calibrators.histogram import Histogram
from speechquant.core.scales import Bits
from speechquant.core.scoring import Job, Score

WORDS = 10
FRAMES = 60


def candidates_of(layers: int) -> Candidates:
    """One tensor a layer, with outliers, so that every percentile makes another scale."""
    histogram = Histogram()
    histogram.add(np.random.default_rng(1).standard_t(3, 200_000).astype(np.float32))
    names = {f"layer{n}.a": f"layer{n}" for n in range(layers)}
    return Candidates("model", Bits(8, 8), names, dict.fromkeys(names, histogram))


def score_of(errors: int, changed: int) -> Score:
    return Score(errors, WORDS, "", "x" * changed + "." * (FRAMES - changed))


class LightAndHeavy:
    """Layers 0 to 4 change 20 labels and cost a word each time, the others change 2 for nothing."""

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        for job in jobs:
            layers = {row.layer for row in job.trial.table.tensors.values()}
            if not layers:
                yield score_of(0, 0)
            elif layers & {f"layer{n}" for n in range(5)}:
                yield score_of(1, 20)
            else:
                yield score_of(0, 2)


def test_labels_that_cost_nothing_are_not_priced_as_those_of_layers_that_hurt() -> None:
    result = search_fast(candidates_of(14), LightAndHeavy(), 80)
    assert result.table.clipped_layers == tuple(f"layer{n}" for n in range(5))
    points = {effect.layer: effect.points for effect in result.layers}
    assert all(points[f"layer{n}"] == pytest.approx(10.0, rel=0.1) for n in range(5))
    assert all(0.0 <= points[f"layer{n}"] < 0.25 for n in range(5, 14))


@dataclass
class Trend:
    """A tenth of the words is lost at p = 0 and a twentieth at 0.5, or the other way round.

    The labels go against it: a fifth more of them change where fewer words are lost.
    """

    falling: bool
    seed: int

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        for job in jobs:
            if not job.trial.quantizes_weights:
                # Every layer alone costs a word of every utterance, so that all are clipped.
                quantized = len(job.trial.table.tensors)
                yield score_of(min(quantized, 1), 10 * min(quantized, 1))
                continue
            along = 2 * (job.trial.table.percentile or 0.0)
            better = along if self.falling else 1 - along
            rng = random.Random(1000 * self.seed + job.utterance)
            lost = sum(rng.random() < 0.1 - 0.05 * better for _ in range(WORDS))
            yield score_of(lost, round(40 + 8 * better))


@pytest.mark.parametrize("falling", [True, False])
def test_words_against_labels_move_the_percentile(falling: bool) -> None:
    chosen = [
        search_fast(candidates_of(14), Trend(falling, seed), 300).table.percentile or 0.0
        for seed in range(12)
    ]
    better = [percent >= 0.4 if falling else percent <= 0.1 for percent in chosen]
    assert sum(better) >= 10


def test_every_fifth_percentile_shares_what_is_left() -> None:
    result = search_fast(candidates_of(14), Trend(falling=True, seed=3), 300)
    assert [row.percent for row in result.percentiles] == list(CLIP_PERCENTS[::5])
    heard_of_layers = sum(effect.utterances for effect in result.layers)
    budget = int(0.1 * (1 + 14 + 51) * 300)
    each = (budget - 300 - heard_of_layers) // 11
    assert {row.utterances for row in result.percentiles} == {each}
    assert result.asked == 300 + heard_of_layers + 11 * each


def test_what_was_heard_whole_is_not_estimated() -> None:
    # One utterance is a whole set: its words alone count, whatever its labels say.
    class Whole:
        def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
            for job in jobs:
                percent = job.trial.table.percentile
                if percent is None:
                    lost = "layer1.a" in job.trial.table.tensors
                    yield score_of(int(lost), 0 if lost else 30)
                else:
                    yield score_of(2 if percent == 0.15 else 3, 50 if percent == 0.15 else 1)

    result = search_fast(candidates_of(3), Whole(), 1)
    assert [effect.points for effect in result.layers] == [0.0, 10.0, 0.0]
    assert result.table.clipped_layers == ("layer1",)
    assert result.table.percentile == 0.15
    rates = [row.rate for row in result.percentiles]
    assert rates == pytest.approx(
        [0.2 if row.percent == 0.15 else 0.3 for row in result.percentiles]
    )
