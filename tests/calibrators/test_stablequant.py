"""Both searches and the guard against scorers whose answers are a known function of the table."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from speechquant.calibrators.clip_candidates import CLIP_PERCENTS, Candidates
from speechquant.calibrators.fast_search import search_fast
from speechquant.calibrators.guard import keep_budget
from speechquant.calibrators.histogram import Histogram
from speechquant.calibrators.scale_search import search_scales
from speechquant.calibrators.stablequant import search_exhaustively
from speechquant.core.errors import CalibrationError
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.scoring import Job, Score, Trial

BITS = 8
WORDS = 10
FRAMES = 50


def search_scale(histogram: Histogram, percent: float, bits: int, *, use_mse: bool) -> float:
    """S_c of one percentile."""
    return float(search_scales(histogram, [percent], bits, use_mse=use_mse)[0])


def histogram_of(seed: int) -> Histogram:
    """A tensor with outliers, so that every part of a percent cut off makes another scale."""
    histogram = Histogram()
    histogram.add(np.random.default_rng(seed).standard_t(3, 200_000).astype(np.float32))
    return histogram


HISTOGRAMS = [histogram_of(seed) for seed in range(4)]


def candidates_of(layers: int, float_layers: tuple[str, ...] = ()) -> Candidates:
    """Two tensors a layer; the histograms repeat."""
    names = {f"layer{n}.{part}": f"layer{n}" for n in range(layers) for part in "ab"}
    histograms = {name: HISTOGRAMS[place % 4] for place, name in enumerate(names)}
    return Candidates("model", Bits(BITS, BITS), names, histograms, float_layers)


@dataclass
class FakeScorer:
    """Scores a table by the errors that `damage` says it adds to an utterance on average.

    A word is wrong, and a frame has another label, where a random number of its own lies below.
    """

    damage: Callable[[ScaleTable], float]
    utterances: int
    asked: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(7)
        self._words = [[rng.random() for _ in range(WORDS)] for _ in range(self.utterances)]
        self._frames = [[rng.random() for _ in range(FRAMES)] for _ in range(self.utterances)]

    def errors(self, table: ScaleTable, utterance: int) -> int:
        share = self.damage(table) / WORDS
        return 1 + sum(threshold < share for threshold in self._words[utterance])

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        for job in jobs:
            self.asked.append((job.trial.key, job.utterance))
            share = self.damage(job.trial.table) / WORDS
            labels = "".join("x" if t < share else "." for t in self._frames[job.utterance])
            yield Score(self.errors(job.trial.table, job.utterance), WORDS, "", labels)


BEST_PERCENT = 0.33  # not on the grid of the fast search
NEAREST_ON_GRID = 0.35


def damage_of(sensitive: Sequence[str]) -> Callable[[ScaleTable], float]:
    """Two errors for a sensitive layer at full range, fewer the nearer its scale is to the best."""
    full = {n: search_scale(HISTOGRAMS[n], 0.0, BITS, use_mse=False) for n in range(4)}
    best = {n: search_scale(HISTOGRAMS[n], BEST_PERCENT, BITS, use_mse=True) for n in range(4)}

    def damage(table: ScaleTable) -> float:
        total = 0.0
        for name, row in table.tensors.items():
            if row.layer in sensitive:
                place = (2 * int(row.layer.removeprefix("layer")) + "ab".index(name[-1])) % 4
                off = abs(math.log(row.scale / best[place]))
                total += off / abs(math.log(full[place] / best[place]))
        return min(total, WORDS)

    return damage


def brute_force(scorer: FakeScorer, layers: int, gamma_points: float) -> tuple[list[str], float]:
    """Algorithm 1 as the paper writes it: S, then p."""
    candidates = candidates_of(layers)

    def wer(scales: dict[str, float]) -> float:
        rows = {name: Scale(candidates.layers[name], scale, 1.0) for name, scale in scales.items()}
        table = ScaleTable("model", "stablequant", Bits(BITS, BITS), rows)
        errors = sum(scorer.errors(table, place) for place in range(scorer.utterances))
        return 100 * errors / (WORDS * scorer.utterances)

    def scale(name: str, percent: float, use_mse: bool) -> float:
        return search_scale(candidates.histograms[name], percent, BITS, use_mse=use_mse)

    float_wer, clipped = wer({}), []
    for number in range(layers):
        layer = f"layer{number}"
        alone = {f"{layer}.{part}": scale(f"{layer}.{part}", 0.0, False) for part in "ab"}
        if wer(alone) - float_wer > gamma_points:
            clipped.append(layer)
    least, chosen = math.inf, -1.0
    for percent in CLIP_PERCENTS:
        every = {
            name: scale(name, percent if layer in clipped else 0.0, True)
            for name, layer in candidates.layers.items()
        }
        if wer(every) < least:
            least, chosen = wer(every), percent
    return clipped, chosen


@pytest.mark.parametrize("sensitive", [(), ("layer1",), ("layer0", "layer3")])
def test_the_exhaustive_search_is_algorithm_1(sensitive: tuple[str, ...]) -> None:
    scorer = FakeScorer(damage_of(sensitive), utterances=12)
    clipped, percent = brute_force(scorer, 4, 0.25)
    assert tuple(clipped) == sensitive
    result = search_exhaustively(candidates_of(4), scorer, 12)
    assert result.table.clipped_layers == sensitive
    assert result.table.percentile == percent
    assert result.asked == result.exhaustive_evaluations == len(scorer.asked) == (1 + 4 + 51) * 12
    assert result.words == 12 * WORDS
    assert result.float_errors == 12
    for row in result.table.tensors.values():
        name = next(n for n, other in result.table.tensors.items() if other is row)
        cut = percent if row.layer in sensitive else 0.0
        histogram = candidates_of(4).histograms[name]
        assert row.scale == search_scale(histogram, cut, BITS, use_mse=True)


def test_gamma_itself_does_not_clip() -> None:
    # 1 of 100 words more is 1 point exactly.
    class OneMore:
        def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
            for job in jobs:
                added = bool(job.trial.table.tensors) and job.utterance == 0
                yield Score(int(added), WORDS, "", ".")

    for gamma, clipped in ((1.0, ()), (0.99, ("layer0", "layer1"))):
        result = search_exhaustively(candidates_of(2), OneMore(), 10, gamma_points=gamma)
        assert result.table.clipped_layers == clipped
        assert [effect.points for effect in result.layers] == [1.0, 1.0]


@pytest.mark.parametrize("search", [search_exhaustively, search_fast])
def test_texts_without_words_are_refused(search: Callable[..., object]) -> None:
    class NoWords:
        def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
            return iter([Score(0, 0, "", ".") for _ in jobs])

    with pytest.raises(CalibrationError, match="has no words"):
        search(candidates_of(2), NoWords(), 5)


@pytest.mark.parametrize("sensitive", [("layer2",), ("layer1", "layer6", "layer7")])
def test_the_fast_search_finds_what_is_clear(sensitive: tuple[str, ...]) -> None:
    scorer = FakeScorer(damage_of(sensitive), utterances=200)
    result = search_fast(candidates_of(10), scorer, 200)
    assert result.table.clipped_layers == sensitive
    chosen = {name: row.scale for name, row in result.table.tensors.items()}
    best = candidates_of(10).clipped(sensitive, NEAREST_ON_GRID).table
    assert chosen == {name: row.scale for name, row in best.tensors.items()}
    assert result.float_errors == 200
    assert result.words == 200 * WORDS


@pytest.mark.parametrize(("layers", "utterances"), [(10, 20), (10, 200), (26, 40), (26, 333)])
@pytest.mark.parametrize("sensitive", [(), ("layer0",), ("layer3", "layer4", "layer8")])
def test_the_fast_search_keeps_to_a_tenth(
    layers: int, utterances: int, sensitive: tuple[str, ...]
) -> None:
    scorer = FakeScorer(damage_of(sensitive), utterances)
    steps: list[tuple[int, int]] = []
    result = search_fast(
        candidates_of(layers), scorer, utterances, on_step=lambda *step: steps.append(step)
    )
    assert result.asked == len(scorer.asked)
    assert len(scorer.asked) <= (1 + layers + 51) * utterances / 10
    assert len(set(scorer.asked)) == len(scorer.asked)
    assert [done for done, _ in steps] == list(range(1, len(scorer.asked) + 1))


@pytest.mark.parametrize("utterances", [1, 2, 5, 11])
def test_a_small_set_costs_one_utterance_a_trial(utterances: int) -> None:
    scorer = FakeScorer(damage_of(["layer1"]), utterances)
    result = search_fast(candidates_of(10), scorer, utterances)
    rest = (1 + 10 + 51) * utterances / 10
    assert result.asked == len(set(scorer.asked)) <= max(rest, utterances + 10 + 51 + rest)
    assert {row.utterances for row in result.layers} <= set(range(1, utterances + 1))
    assert min(row.utterances for row in result.percentiles) >= 1


def test_the_trials_leave_the_weights_of_float_layers_alone() -> None:
    candidates = candidates_of(2, float_layers=("head",))
    assert candidates.clipped([], 0.0).table.float_layers == ("head",)
    assert candidates.clipped([], 0.0).key != candidates_of(2).clipped([], 0.0).key
    # Without rounded weights it makes no difference, and the log's scores stay good.
    assert candidates.layer_alone("layer0").key == candidates_of(2).layer_alone("layer0").key


def guarded_table(layers: Sequence[str]) -> ScaleTable:
    rows = {f"{layer}.{part}": Scale(layer, 0.1, 12.7) for layer in layers for part in "ab"}
    return ScaleTable("model", "max", Bits(), rows)


@dataclass
class LayerScorer:
    """Each quantized layer adds its own errors, shared out over two utterances."""

    added: dict[str, int]

    def errors(self, quantized: set[str]) -> int:
        return sum(errors for layer, errors in self.added.items() if layer in quantized)

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        for job in jobs:
            assert job.trial.quantizes_weights
            quantized = {row.layer for row in job.trial.table.tensors.values()}
            assert quantized.isdisjoint(job.trial.table.float_layers)
            total = self.errors(quantized)
            yield Score(total // 2 if job.utterance else total - total // 2, 10, "", "")


MEGABYTE = 1_000_000


def test_the_guard_takes_back_needless_layers() -> None:
    # cheap saves 3 per MB, so it goes first; large then makes it needless: 3 are allowed.
    scorer = LayerScorer({"cheap": 3, "large": 20, "harmless": 0})
    sizes = {"cheap": MEGABYTE, "large": 10 * MEGABYTE, "harmless": 5}
    table = guarded_table(list(scorer.added))
    result = keep_budget(table, scorer, 2, 3, sizes)
    assert [relief.layer for relief in result.reliefs] == ["cheap", "large", "harmless"]
    assert [relief.errors_saved for relief in result.reliefs] == [3, 20, 0]
    assert result.float_layers == result.table.float_layers == ("large",)
    assert (result.errors_before, result.errors_after) == (23, 3)
    assert {row.layer for row in result.table.tensors.values()} == {"cheap", "harmless"}
    assert table == guarded_table(list(scorer.added))


@pytest.mark.parametrize("seed", range(20))
def test_the_guard_keeps_the_budget_with_nothing_to_spare(seed: int) -> None:
    rng = random.Random(seed)
    scorer = LayerScorer({f"layer{n}": rng.choice([0, 0, 1, 2, 5, 9]) for n in range(8)})
    sizes = {layer: rng.randint(1, 20) * MEGABYTE for layer in scorer.added}
    allowed = rng.randint(0, 12)
    result = keep_budget(guarded_table(list(scorer.added)), scorer, 2, allowed, sizes)
    left = set(scorer.added) - set(result.float_layers)
    assert result.errors_after == scorer.errors(left) <= allowed
    for layer in result.float_layers:
        assert scorer.errors(left | {layer}) > allowed


def test_the_guard_finds_layers_that_only_help_together() -> None:
    class Together(LayerScorer):
        def errors(self, quantized: set[str]) -> int:
            return 10 if quantized & {"a", "b"} else 0

    scorer = Together({"a": 0, "b": 0, "c": 0})
    table = guarded_table(list(scorer.added))
    result = keep_budget(table, scorer, 2, 4, dict.fromkeys(scorer.added, MEGABYTE))
    assert sorted(result.float_layers) == ["a", "b"]
    assert result.errors_after == 0


def test_the_guard_leaves_a_table_that_is_good_enough() -> None:
    scorer = LayerScorer({"a": 1, "b": 1})
    table = guarded_table(["a", "b"])
    result = keep_budget(table, scorer, 2, 2, dict.fromkeys(scorer.added, 1))
    assert result.float_layers == ()
    assert result.table == table


def test_a_budget_below_the_float_model_leaves_everything_in_float() -> None:
    scorer = LayerScorer({"a": 1, "b": 1})
    table = guarded_table(["a", "b"])
    result = keep_budget(table, scorer, 2, -1, dict.fromkeys(scorer.added, 1))
    assert sorted(result.float_layers) == ["a", "b"]
    assert not result.table.tensors


def test_every_percentile_of_the_paper_is_tried() -> None:
    assert CLIP_PERCENTS[0] == 0.0
    assert CLIP_PERCENTS[-1] == 0.5
    assert {round(b - a, 10) for a, b in itertools.pairwise(CLIP_PERCENTS)} == {0.01}


def test_a_trial_is_told_by_what_it_does() -> None:
    table = guarded_table(["a"])
    assert Trial(table, True, "one").key == Trial(table, True, "other").key
    assert Trial(table, True, "one").key != Trial(table, False, "one").key
