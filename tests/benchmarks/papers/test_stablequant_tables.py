from __future__ import annotations

from pathlib import Path

from speechquant.benchmarks.papers.ctc_models import source_of
from speechquant.benchmarks.papers.splits import DataSplit, thinned
from speechquant.benchmarks.papers.stablequant_paper import TABLE_1, TABLE_2, family_of
from speechquant.core.manifests import LabelledClip
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


def test_every_model_has_published_rows() -> None:
    for architecture in ("HubertForCTC", "Wav2Vec2ForCTC"):
        family = family_of(architecture)
        assert set(TABLE_1[family]) == set(TABLE_2[family]) == {16, 8, 6, 4}
