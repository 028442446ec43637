from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reports import MS, report

from speechquant.benchmarks.report.figures import Candidate, fastest, figures_of
from speechquant.benchmarks.report.record import (
    FLOAT,
    OURS,
    PEER,
    Accuracy,
    Cell,
    Report,
    Result,
    Skipped,
)
from speechquant.core.wer import EditCounts, ErrorRate


def cell(seconds: float, batch: int, *network_ms: int, **given: object) -> Cell:
    """Runs with 1 ms before the network and 2 ms after it."""
    count = len(network_ms)
    network = tuple(value * MS for value in network_ms)
    return replace(
        Cell(seconds, batch, (MS,) * count, network, (2 * MS,) * count),
        **given,  # type: ignore[arg-type]
    )


def result(name: str, role: str, *cells: Cell, **given: object) -> Result:
    made = Result(name, "m", role, "m", "how", "cpu", "fp32", cells=cells)
    return replace(made, **given)  # type: ignore[arg-type]


def of(*results: Result) -> Report:
    return replace(report(), results=results)


def candidates(*results: Result) -> tuple[Candidate, ...]:
    return figures_of(of(*results)).candidates


def test_a_latency_worked_by_hand() -> None:
    # Waveform to text: 10, 20, 30, 40, 50 ms of 4 x 5 s of audio.
    (one,) = candidates(result("float", FLOAT, cell(5.0, 4, 7, 17, 27, 37, 47)))
    (latency,) = one.latencies
    assert latency.audio_seconds == 20.0
    assert latency.whole.stats.p50 == pytest.approx(0.030)
    assert latency.whole.stats.p90 == pytest.approx(0.046)
    assert latency.network.stats.p50 == pytest.approx(0.027)
    assert latency.real_time_factor == pytest.approx(0.0015)
    assert latency.throughput == pytest.approx(20 / 0.030)
    assert latency.share_outside == pytest.approx(0.1)
    assert latency.whole.speed_up is None
    assert latency.device is None


def test_a_speed_up_is_floats_time_over_the_candidates_in_each_part() -> None:
    # Every network run takes half of float's in its round; the whole way is 33/18 as long.
    baseline = result("float", FLOAT, cell(10.0, 1, 30, 30, 30, device=(20 * MS,) * 3))
    ours = result("w8a8", OURS, cell(10.0, 1, 15, 15, 15, device=(5 * MS,) * 3))
    _, one = candidates(baseline, ours)
    (latency,) = one.latencies
    assert latency.network.speed_up is not None
    assert latency.whole.speed_up is not None
    assert latency.device is not None
    assert latency.device.speed_up is not None
    found = latency.network.speed_up
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    assert latency.whole.speed_up.value == pytest.approx(33 / 18)
    assert latency.device.speed_up.value == 4.0


def test_a_shape_that_float_was_not_run_on_has_no_speed_up() -> None:
    _, one = candidates(result("f", FLOAT, cell(1.0, 1, 9)), result("o", OURS, cell(2.0, 1, 9)))
    assert one.latencies[0].whole.speed_up is None


@pytest.mark.parametrize(
    ("float_shapes", "headline"),
    [
        ([(1.0, 1), (10.0, 1), (30.0, 1), (10.0, 4)], (10.0, 1)),
        ([(1.0, 1), (8.0, 1), (20.0, 1)], (8.0, 1)),
        ([(15.0, 2), (20.0, 2)], (15.0, 2)),
        ([(10.0, 4), (5.0, 2)], (5.0, 2)),
        ([], (2.0, 1)),
    ],
)
def test_the_headline_is_of_ten_seconds_or_the_longest_below(
    float_shapes: list[tuple[float, int]], headline: tuple[float, int]
) -> None:
    baseline = result("f", FLOAT, *(cell(seconds, batch, 9) for seconds, batch in float_shapes))
    (model,) = figures_of(of(baseline, result("o", OURS, cell(2.0, 1, 9)))).models
    assert model.headline == headline


def test_nothing_run_has_no_headline() -> None:
    skipped = result("f", FLOAT, cell(1.0, 1), skipped=(Skipped(1.0, 1, "too\nlong"),))
    (model,) = figures_of(of(skipped)).models
    assert model.headline is None
    assert model.shapes == ()
    assert model.candidates[0].skipped[0].reason == "too long"


def test_size_load_memory_and_layers() -> None:
    figures = figures_of(report())
    ours = figures.models[0].candidates[1]
    assert ours.size_share == pytest.approx(95 / 377)
    assert ours.load_seconds == pytest.approx(1.905)
    # The largest shape is 4 clips of 10 s; the recipe is 400 MB and 10 MB a second of audio.
    assert ours.largest_shape == (10.0, 4)
    assert ours.peak_bytes == 800_000_000
    assert ours.integer_products == (57, 58)
    assert [kernel.name for kernel in ours.kernels] == ["MatMulIntegerToFloat", "Softmax"]
    assert ours.kernels[0].share == pytest.approx(250 / 290)
    failed = figures.models[0].candidates[3]
    assert (failed.peak_bytes, failed.latencies, failed.words) == (None, (), None)


def rate(*errors: int, words: int = 5) -> ErrorRate:
    return ErrorRate(tuple(EditCounts(count, 0, 0, words) for count in errors))


def accuracy(words: ErrorRate) -> Accuracy:
    return Accuracy(words, words, (), 10.0, 1.0)


def test_the_difference_of_word_errors_is_paired() -> None:
    baseline = result("f", FLOAT, accuracy=accuracy(rate(*[0, 4] * 50)))
    # One error more in every clip, whatever the clip: no draw of clips changes the difference.
    ours = result("o", OURS, accuracy=accuracy(rate(*[1, 5] * 50)))
    float_one, one = candidates(baseline, ours)
    assert one.words is not None
    assert one.words.difference is not None
    found = one.words.difference
    assert found.difference == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2)
    assert float_one.words is not None
    assert float_one.words.difference is None
    # A mean of 100 draws of 0 or 80 %: 40 %, give or take 1.96 standard errors of 4 points.
    interval = float_one.words.interval
    assert interval.low == pytest.approx(0.40 - 1.96 * 0.04, abs=0.01)
    assert interval.high == pytest.approx(0.40 + 1.96 * 0.04, abs=0.01)


def test_rates_of_other_texts_are_not_compared() -> None:
    baseline = result("f", FLOAT, accuracy=accuracy(rate(0, 1)))
    ours = result("o", OURS, accuracy=accuracy(rate(0, 1, words=6)))
    silent = result("s", PEER, accuracy=accuracy(rate(0, 0, words=0)))
    _, other, empty = candidates(baseline, ours, silent)
    assert other.words is not None
    assert other.words.difference is None
    assert empty.words is None


def test_letters_go_on_after_z() -> None:
    keys = [one.key for one in candidates(*(result(str(i), PEER) for i in range(54)))]
    assert keys[0] == "A"
    assert keys[25:28] == ["Z", "AA", "AB"]
    assert keys[51:54] == ["AZ", "BA", "BB"]


def test_names_are_one_line_and_files_have_their_own() -> None:
    names = ["random:hubert-base", "Random hubert BASE", "\u00fc\n/..", "x" * 99]
    figures = figures_of(of(*(replace(result("r", FLOAT), model=name) for name in names)))
    assert [model.slug for model in figures.models] == [
        "random-hubert-base",
        "random-hubert-base-2",
        "model",
        "x" * 40,
    ]
    assert figures.models[2].name == "\u00fc /.."


def test_the_fastest_of_a_role() -> None:
    slow, fast = (result(name, PEER, cell(2.0, 1, ms)) for name, ms in (("s", 9), ("f", 8)))
    other = result("shorter only", PEER, cell(1.0, 1, 1))
    (model,) = figures_of(of(slow, fast, other)).models
    chosen = fastest(model, PEER)
    assert chosen is not None
    assert chosen.name == "f"
    assert fastest(model, OURS) is None


def test_medians_agree_with_numpy() -> None:
    made = report()
    figures = figures_of(made)
    for one, source in zip(figures.candidates, made.results, strict=True):
        for latency, measured in zip(one.latencies, source.cells, strict=True):
            whole = np.array([measured.prepare, measured.network, measured.text]).sum(axis=0)
            assert latency.whole.stats.p50 == pytest.approx(np.median(whole) / 1e9)
