from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from speechquant.benchmarks.papers.ctc_models import source_of
from speechquant.benchmarks.papers.splits import DataSplit, thinned
from speechquant.benchmarks.papers.stablequant_paper import TABLE_1, TABLE_2, family_of
from speechquant.benchmarks.papers.stablequant_tables import Plan, Tables
from speechquant.core.manifests import LabelledClip
from speechquant.core.wer import EditCounts, ErrorRate, difference_interval
from speechquant.recipes.experiment import Experiment, Scored
from speechquant.zoo.models import TRAINED_MODELS


def test_a_set_is_thinned_evenly() -> None:
    clips = [LabelledClip(Path(f"{number}.wav"), "one") for number in range(10)]
    assert thinned(clips, None) == clips
    assert thinned(clips, 10) == clips
    assert thinned(clips, 5) == clips[::2]
    assert thinned(clips, 4) == clips[::3]
    split = DataSplit("set", clips, clips[:3]).limited_to(2)
    assert [len(part) for part in (split.calibration, split.test)] == [2, 2]


def test_models_are_of_the_zoo_or_folders() -> None:
    assert source_of("zoo:hubert") == TRAINED_MODELS / "hubert"
    assert source_of("runs/hubert") == Path("runs/hubert")


class FakeExperiment:
    """Makes so many errors of ten: with ranges fitted on clips one, else two or three."""

    def score_balanced(
        self, bits: int, *, symmetric: bool = True, fit_clips: int | None = None
    ) -> Scored:
        return scored(1 if fit_clips == 7 else 2 + symmetric)


def scored(errors: int) -> Scored:
    words = ErrorRate((EditCounts(errors, 0, 0, 10),) * 4)
    return Scored(words, difference_interval(ErrorRate((EditCounts(0, 0, 0, 10),) * 4), words), 1)


@pytest.mark.parametrize(("bits", "fitted"), [(6, ["10.00", "-40.00"]), (7, ["-", "-"])])
def test_own_columns_are_fitted_at_few_bits(bits: int, fitted: list[str]) -> None:
    tables = Tables(cast(Experiment, FakeExperiment()), Plan((), fit_clips=7))
    cells = tables.own_cells(bits, scored(5))
    assert [text.split(" ")[0] for text in cells] == ["30.00", "20.00", "-20.00", *fitted]


def test_every_model_has_published_rows() -> None:
    for architecture in ("HubertForCTC", "Wav2Vec2ForCTC"):
        family = family_of(architecture)
        assert set(TABLE_1[family]) == set(TABLE_2[family]) == {16, 8, 6, 4}
