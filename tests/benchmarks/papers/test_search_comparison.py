from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from speechquant.benchmarks.papers.search_comparison import Comparison, find, summary
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.wer import EditCounts, ErrorRate, difference_interval
from speechquant.recipes.experiment import Experiment, Scored


class FakeExperiment:
    """Finds a percentile for each kind of search, and counts how often it searched."""

    statistics = None

    calibration = ()

    def __init__(self, work: Path) -> None:
        self.work, self.searches = work, 0
        self.bundle = SimpleNamespace(model_sha256="one")

    def search_log(self, search: str) -> Path:
        return self.work / search

    def search(self, bits: int, search: str, dev: Sequence[LabelledClip]) -> SimpleNamespace:
        self.searches += 1
        is_fast = search == "fast"
        rows = {"0.input": Scale("conv.0", 0.5, 63.5)}
        table = ScaleTable(
            "model", "stablequant", Bits(bits, bits), rows,
            percentile=0.05 if is_fast else 0.0, clipped_layers=("conv.0",),
        )  # fmt: skip
        return SimpleNamespace(
            table=table, asked=len(dev) * (1 if is_fast else 10), exhaustive_evaluations=20
        )

    def score(self, table: ScaleTable) -> Scored:
        clips = 50
        errors = 2 if table.percentile else 1
        words = ErrorRate((EditCounts(errors, 0, 0, 10),) * clips)
        perfect = ErrorRate((EditCounts(0, 0, 0, 10),) * clips)
        return Scored(words, difference_interval(perfect, words), 1)


@pytest.fixture
def dev(tmp_path: Path) -> list[LabelledClip]:
    clips = [LabelledClip(tmp_path / f"{number}.wav", "one") for number in range(2)]
    for clip in clips:
        clip.path.write_bytes(clip.path.name.encode())
    return clips


def test_a_search_that_ended_is_not_run_again(tmp_path: Path, dev: list[LabelledClip]) -> None:
    bench = FakeExperiment(tmp_path)
    first = find(cast(Experiment, bench), 8, "fast", 0, dev)
    again = find(cast(Experiment, bench), 8, "fast", 0, dev)
    assert again == first and bench.searches == 1
    find(cast(Experiment, bench), 8, "fast", 0, dev[:1])  # other clips, so nothing is known
    assert bench.searches == 2
    bench.bundle.model_sha256 = "two"
    find(cast(Experiment, bench), 8, "fast", 0, dev[:1])
    assert bench.searches == 3


def test_the_summary_counts_equal_choices_and_clear_losses(
    tmp_path: Path, dev: list[LabelledClip]
) -> None:
    bench = cast(Experiment, FakeExperiment(tmp_path))
    slow, fast = (find(bench, 8, search, 0, dev) for search in ("exhaustive", "fast"))
    rows = [
        Comparison("zoo:one", "W8A8", 1, slow, fast),
        Comparison("zoo:one", "W8A8", 2, slow, slow),
    ]
    text = summary(rows)[-1]
    assert "1 of 2" in text.split("|")[4] and "2 of 2" in text.split("|")[3]
    assert "0 better, 1 worse" in text and "100.0 %" in text
