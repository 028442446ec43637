from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from reports import accuracy, report

from speechquant.benchmarks.report.comparison import (
    BETTER,
    REGRESSION,
    SAME,
    UNJUDGED,
    WORSE,
    Bounds,
    Change,
    Comparison,
    compare_reports,
)
from speechquant.benchmarks.report.record import Cell, Report, Result
from speechquant.core.errors import OptionError, ReportError

OURS = "base-w8a8 (cpu)"


def slowed(result: Result, factor: float) -> Result:
    def times(cell: Cell) -> Cell:
        return replace(cell, network=tuple(int(factor * value) for value in cell.network))

    return replace(result, cells=tuple(map(times, result.cells)))


def changed(made: Report, name: str, **values: object) -> Report:
    results = [
        replace(result, **values) if result.name == name else result  # type: ignore[arg-type]
        for result in made.results
    ]
    return replace(made, results=tuple(results))


def slower(made: Report, factor: float, name: str | None = None) -> Report:
    results = [
        slowed(result, factor) if name in (None, result.name) else result for result in made.results
    ]
    return replace(made, results=tuple(results))


def rerun(made: Report, seed: int, drift: float) -> Report:
    """The same build again on a machine that is slower by `drift` and noisy in its own way."""
    rng = np.random.default_rng(seed)

    def times(cell: Cell, rounds: np.ndarray) -> Cell:
        noise = rounds * rng.normal(1.0, 0.03, len(cell.network))
        network = tuple(int(drift * value) for value in np.median(cell.network) * noise)
        return replace(cell, network=network)

    shared = {
        (cell.seconds, cell.batch): rng.normal(1.0, 0.1, len(cell.network)).clip(0.7)
        for cell in made.results[0].cells
    }
    results = [
        replace(
            result,
            cells=tuple(times(cell, shared[cell.seconds, cell.batch]) for cell in result.cells),
        )
        for result in made.results
    ]
    return replace(made, results=tuple(results))


def of(comparison: Comparison, name: str, what: str) -> Change:
    (found,) = (c for c in comparison.changes if c.candidate == name and c.what.startswith(what))
    return found


def test_a_report_against_itself() -> None:
    found = compare_reports(report(), report())
    assert {change.verdict for change in found.changes} == {SAME, UNJUDGED}
    assert all(change.change in (1.0, 0.0) for change in found.changes)
    assert found.regressions == ()
    assert found.notes == ()


def test_the_same_build_on_a_slower_and_noisier_machine_is_no_regression() -> None:
    alarms = [
        compare_reports(rerun(report(), seed, 1.0), rerun(report(), 100 + seed, 1.5)).regressions
        for seed in range(20)
    ]
    # "other (cpu)" has no other candidate to be measured by: its own seconds count.
    assert [
        [change.what for change in found if change.candidate != "other (cpu)"] for found in alarms
    ] == [[]] * 20


def of_runs(made: Report, count: int) -> Report:
    """The report with the first runs of each shape alone."""

    def first(cell: Cell) -> Cell:
        rows = {name: getattr(cell, name)[:count] for name in ("prepare", "network", "text")}
        return replace(cell, **rows)

    results = [replace(result, cells=tuple(map(first, result.cells))) for result in made.results]
    return replace(made, results=tuple(results), method=replace(made.method, repeats=count))


def test_three_runs_of_the_same_build_raise_no_alarm() -> None:
    # Three and three lie apart altogether in one comparison of ten, and here are 23.
    for seed in range(10):
        old, new = (of_runs(rerun(report(), seed + start, 1.0), 3) for start in (0, 100))
        found = compare_reports(old, new)
        assert {change.verdict for change in found.changes} == {SAME, UNJUDGED}
        assert "3 and 3 runs of a shape are too few" in found.notes[0]
    caught = compare_reports(old, of_runs(slower(rerun(report(), 7, 1.0), 1.5, OURS), 3))
    assert [change.what for change in caught.regressions] == ["latency, mean of all shapes"]


def test_a_slowed_candidate_is_caught_on_a_slower_machine_too() -> None:
    for seed in range(10):
        new = slower(rerun(report(), 50 + seed, 0.8), 1.25, OURS)
        found = compare_reports(rerun(report(), seed, 1.0), new)
        whole = of(found, OURS, "latency, mean")
        assert whole.verdict == REGRESSION
        assert whole.change == pytest.approx(1.25, rel=0.1)
        assert whole.unit == "of float's time"
        assert {c.candidate for c in found.regressions} <= {OURS, "other (cpu)"}


def beside_others(made: Report, shapes: Sequence[tuple[float, int]]) -> Report:
    """The report as of a machine that others kept busy while these shapes were timed."""

    def busy(cell: Cell) -> Cell:
        return replace(cell, others_share=0.5 if (cell.seconds, cell.batch) in shapes else 0.02)

    results = [replace(result, cells=tuple(map(busy, result.cells))) for result in made.results]
    return replace(made, results=tuple(results))


def test_times_beside_other_programs_are_not_judged() -> None:
    old, slow = report(), slower(report(), 1.5, OURS)
    found = compare_reports(old, beside_others(slow, [(1.0, 1), (2.0, 1)]))
    judged = [change.what for change in found.regressions]
    assert "latency at 1 s x 1" not in judged
    assert {"latency at 10 s x 1", "latency, mean of all shapes"} <= set(judged)
    assert found.notes[0].startswith("1 s x 1, 2 s x 1 were timed while other programs took more")
    shapes = [(cell.seconds, cell.batch) for cell in old.results[0].cells]
    found = compare_reports(beside_others(old, shapes), slow)
    assert found.regressions == ()
    assert found.notes[0].startswith("every shape was timed while other programs")


def test_bounds_and_directions() -> None:
    old = report()
    assert of(compare_reports(old, slower(old, 1.05, OURS)), OURS, "latency, mean").verdict in (
        SAME,
        WORSE,
    )
    assert of(compare_reports(old, slower(old, 0.5, OURS)), OURS, "latency, mean").verdict == BETTER
    tight = Bounds(slowdown=0.01)
    new = slower(old, 1.3, OURS)
    assert len(compare_reports(old, new, Bounds(slowdown=0.5)).regressions) == 0
    assert len(compare_reports(old, new, tight).regressions) == 7  # six shapes and their mean
    with pytest.raises(OptionError, match="negative"):
        Bounds(growth=-1)
    with pytest.raises(OptionError, match="no number"):
        Bounds(slowdown=float("nan"))


def test_the_yardstick_is_shown_and_not_judged() -> None:
    found = compare_reports(report(), slower(report(), 2.0))
    assert of(found, "base (cpu)", "latency, mean").change == pytest.approx(2.0, rel=0.01)
    assert of(found, "base (cpu)", "latency, mean").verdict == UNJUDGED
    assert of(found, OURS, "latency, mean").verdict == SAME
    # Alone, seconds are all there is.
    assert of(found, "other (cpu)", "latency, mean").verdict == REGRESSION


def test_float_on_another_provider_is_another_yardstick() -> None:
    old = report()
    faster = replace(slowed(old.results[0], 0.5), name="base (openvino)", provider="openvino")
    # Beside float on cpu it is looked past, though it comes first.
    both = compare_reports(old, replace(old, results=(faster, *old.results)))
    assert of(both, OURS, "latency, mean").change == pytest.approx(1.0)
    assert of(both, OURS, "latency, mean").unit == "of float's time"
    # Alone it is no measure, and seconds are compared.
    alone = compare_reports(old, replace(old, results=(faster, *old.results[1:])))
    assert of(alone, OURS, "latency, mean").change == pytest.approx(1.0)
    assert of(alone, OURS, "latency, mean").unit == "s"


def test_errors_bytes_and_failures() -> None:
    old = report()
    worse = changed(old, OURS, accuracy=accuracy([1, 1, 2, 1, 1, 1] * 10), size_bytes=200_000_000)
    found = compare_reports(old, worse)
    wer = of(found, OURS, "WER")
    # Of 300 words 50 were wrong, now 70.
    assert (wer.old, wer.new) == (pytest.approx(100 / 6), pytest.approx(70 / 3))
    assert wer.change == pytest.approx(100 * 20 / 300)
    assert wer.verdict == REGRESSION
    assert of(found, OURS, "size").verdict == REGRESSION
    gone = compare_reports(old, changed(old, OURS, failure="it crashed", cells=()))
    assert [c.what for c in gone.regressions] == ["fails now: it crashed"]


def with_peaks(made: Report, *peaks: int) -> Report:
    """The report with these peaks of memory in the first cells of OURS, and no other cells."""

    def held(result: Result) -> Result:
        pairs = zip(result.cells, peaks, strict=False)
        return replace(result, cells=tuple(replace(cell, peak_bytes=peak) for cell, peak in pairs))

    return replace(
        made, results=tuple(held(each) if each.name == OURS else each for each in made.results)
    )


@pytest.mark.parametrize(
    ("peak", "verdict"),
    [(104, SAME), (97, SAME), (106, WORSE), (90, BETTER), (112, REGRESSION)],
)
def test_peak_memory_has_noise_of_its_own(peak: int, verdict: str) -> None:
    found = compare_reports(with_peaks(report(), 80, 100), with_peaks(report(), 80, peak))
    assert of(found, OURS, "peak memory").verdict == verdict


def test_peaks_after_other_shapes_are_not_compared() -> None:
    found = compare_reports(with_peaks(report(), 80), with_peaks(report(), 80, 200))
    assert not [c for c in found.changes if (c.candidate, c.what) == (OURS, "peak memory")]


def test_what_cannot_be_compared_is_said() -> None:
    old = report()
    new = replace(
        old,
        results=old.results[:1],
        data=replace(old.data, sha256="cd" * 32),
        machine=replace(old.machine, processor="Other CPU", packages={"onnxruntime": "2.0"}),
        method=replace(old.method, threads=None),
    )
    found = compare_reports(old, new)
    assert f"{OURS} is in the old report only" in found.notes
    assert "other machines: Test CPU, then Other CPU" in found.notes
    assert "onnxruntime was 1.0, is 2.0" in found.notes
    assert "other data, so errors are not compared" in found.notes
    assert not [change for change in found.changes if change.what == "WER"]
    cells = old.results[1].cells
    found = compare_reports(old, changed(old, OURS, accuracy=None, cells=cells[2:]))
    assert found.notes == (
        f"{OURS} was timed at 1 s x 1, 2 s x 1 in the old report only",
        f"{OURS} was scored in the old report only",
    )
    other = replace(old, method=replace(old.method, normalizer="whisper"))
    (note,) = compare_reports(old, other).notes
    assert note.startswith("texts were normalized in another way")


def test_reports_of_nothing_alike_do_not_pass() -> None:
    old = report()
    renamed = [replace(result, name=f"new {result.name}") for result in old.results]
    with pytest.raises(ReportError, match="nothing is in both"):
        compare_reports(old, replace(old, results=tuple(renamed)))
