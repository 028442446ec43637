from __future__ import annotations

from dataclasses import replace

import pytest
from reports import report

from speechquant.benchmarks.report import words
from speechquant.benchmarks.report.figures import ReportFigures, figures_of
from speechquant.benchmarks.report.record import FLOAT, OURS, PEER, Report
from speechquant.benchmarks.report.statistics import Ratio
from speechquant.benchmarks.report.tables import headline_table
from speechquant.core.wer import DifferenceInterval

MINUS, GAP = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def with_figures(speed_up: Ratio, share: float, difference: DifferenceInterval) -> ReportFigures:
    """The first model of the hand-made report with other figures for what is ours, and no peer."""
    figures = figures_of(replace(report(), results=report().results[:2]))
    model = figures.models[0]
    ours = model.candidates[1]
    assert ours.words is not None
    latencies = tuple(
        replace(latency, whole=replace(latency.whole, speed_up=speed_up))
        for latency in ours.latencies
    )
    errors = replace(ours.words, difference=difference)
    ours = replace(ours, latencies=latencies, size_share=share, words=errors)
    return replace(figures, models=(replace(model, candidates=(model.candidates[0], ours)),))


def interval(difference: float, low: float, high: float) -> DifferenceInterval:
    return DifferenceInterval(difference / 100, low / 100, high / 100, 0.95)


@pytest.mark.parametrize(
    ("speed_up", "share", "difference", "sentence"),
    [
        (
            Ratio(2.4, 2.38, 2.46, 0.95), 0.252, interval(0.1, -0.3, 0.4),
            f"base-w8a8 (cpu) is 2.40 times as fast as float at 10{GAP}s (2.38 to 2.46), is a "
            "quarter of its size, and its word error rate is 0.10 points higher "
            f"({MINUS}0.30 to +0.40): 60 clips of 300 words could hide a loss of 0.40 points.",
        ),
        (
            Ratio(0.5, 0.4, 0.625, 0.95), 0.33, interval(-1.2, -1.9, -0.5),
            f"base-w8a8 (cpu) takes 2.00 times as long as float at 10{GAP}s (1.60 to 2.50), is a "
            f"third of its size, and its word error rate is 1.20 points lower ({MINUS}1.90 to "
            f"{MINUS}0.50).",
        ),
        (
            Ratio(1.01, 0.97, 1.02, 0.95), 0.41, interval(0, 0, 0),
            f"base-w8a8 (cpu) is as fast as float at 10{GAP}s, as far as was measured (0.97 to "
            f"1.02), is 41{GAP}% of its size, and its word error rate is the same (no clip differs): "
            # 1 - 0.05 ** (1 / 60) of 60 clips, an error each, among 300 words
            "60 clips of 300 words could hide a loss of 0.97 points.",
        ),
    ],
)  # fmt: skip
def test_the_sentence_on_what_is_ours(
    speed_up: Ratio, share: float, difference: DifferenceInterval, sentence: str
) -> None:
    assert words.conclusions(with_figures(speed_up, share, difference)) == [sentence]


def test_a_busy_machine_stands_beside_the_headline() -> None:
    made = report()
    cells = [
        tuple(replace(cell, others_share=0.4) for cell in result.cells) for result in made.results
    ]
    busy = replace(
        made,
        results=tuple(
            replace(result, cells=own) for result, own in zip(made.results, cells, strict=True)
        ),
    )
    first, second, *_ = words.conclusions(figures_of(busy))
    assert first == (
        f"The times of base are doubtful: other programs took 40{GAP}% of the processors while "
        f"10{GAP}s was timed. Measure again on a machine that does nothing else."
    )
    assert "on a busy machine" in second
    assert "busy" in headline_table(figures_of(busy).models[0]).caption
    assert "busy" not in said(made)
    assert "busy" not in headline_table(figures_of(made).models[0]).caption


def said(made: Report) -> str:
    return " ".join(words.conclusions(figures_of(made)))


def test_what_the_sentences_say_where_something_is_missing() -> None:
    made = report()
    results = made.results
    assert "has no float result" in said(replace(made, results=results[1:3]))
    assert "bench was given nothing" in said(replace(made, results=()))
    failed = replace(results[3], role=FLOAT)
    assert "its only candidate failed" in said(replace(made, results=(failed,)))
    both = (failed, replace(failed, role=OURS))
    assert "both candidates failed" in said(replace(made, results=both))
    assert "all 4 candidates failed" in said(replace(made, results=both * 2))
    assert "Latency only" not in said(replace(made, results=both))
    skipped = replace(results[4], cells=())
    assert "every length was skipped" in said(replace(made, results=(skipped,)))
    lost = (results[0], results[3])
    assert "No bundle or engine of speechquant was timed on base" in said(
        replace(made, results=lost)
    )
    peers = (results[0], replace(results[2], role=PEER, accuracy=None))
    assert "The fastest peer, ONNX Runtime static INT8, Entropy, is 1.3" in said(
        replace(made, results=peers)
    )


def test_latency_only() -> None:
    made = report()
    silent = tuple(replace(result, accuracy=None) for result in made.results)
    no_text = replace(made.data, has_text=False)
    assert "Latency only: the data has no texts." in said(
        replace(made, data=no_text, results=silent)
    )
    assert "Latency only: no candidate was scored." in said(replace(made, results=silent))
    assert "Latency only" not in said(made)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.milliseconds(0.0003456), "0.35"),
        (words.milliseconds(0.0123), "12.3"),
        (words.milliseconds(0.0999), "99.9"),
        (words.milliseconds(0.09996), "100"),
        (words.milliseconds(2.8091), "2,809"),
        (words.duration(0.8), f"800{GAP}ms"),
        (words.duration(2.5), f"2.50{GAP}s"),
        (words.duration(75.25), f"75.2{GAP}s"),
        (words.megabytes(377_300_000), f"377{GAP}MB"),
        (words.megabytes(4_140_000), f"4.1{GAP}MB"),
        (words.gibibytes(3 * 2**29), f"1.50{GAP}GiB"),
        (words.points(0.00123), "+0.12"),
        (words.points(-0.00123), f"{MINUS}0.12"),
        (words.points(-0.00001), "0.00"),
        (words.difference(None), "\N{EN DASH}"),
        (words.shape((10.0, 4)), f"10{GAP}s in batches of 4"),
        (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.count(1, "clip") + words.count(2, "clip"), "1 clip2 clips"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert text == expected
