"""What a report says of models that write token by token: worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Picture
from reports import MS, report, whisper_report

from speechquant.benchmarks.report import row_plots as rows
from speechquant.benchmarks.report import tokens
from speechquant.benchmarks.report.comparison import REGRESSION, UNJUDGED, compare_reports
from speechquant.benchmarks.report.figures import ModelFigures, figures_of
from speechquant.benchmarks.report.page import page_of
from speechquant.benchmarks.report.record import (
    REPORT_FILE,
    Cell,
    Report,
    Result,
    TokenCell,
    read_report,
    write_report,
)
from speechquant.benchmarks.report.tables import Figure, Mark
from speechquant.benchmarks.report.words import conclusions
from speechquant.benchmarks.report.write import write_pages


@pytest.fixture(scope="module")
def model() -> ModelFigures:
    return figures_of(whisper_report()).models[0]


def test_runs_are_read_again_and_ctc_reports_hold_nothing_new(tmp_path: Path) -> None:
    write_report(whisper_report(), tmp_path / REPORT_FILE)
    assert read_report(tmp_path) == whisper_report()
    write_report(report(), tmp_path / "ctc.json")
    document = json.loads((tmp_path / "ctc.json").read_text())
    assert "decoding" not in document["method"]
    assert all("tokens" not in cell for row in document["results"] for cell in row["cells"])
    assert read_report(tmp_path / "ctc.json") == report()


def test_first_and_later_tokens_worked_by_hand(model: ModelFigures) -> None:
    baseline, ours = model.candidates
    latency, other = ours.latency((10.0, 2)), baseline.latency((10.0, 2))
    assert latency is not None and latency.tokens is not None
    assert other is not None and other.tokens is not None
    found = latency.tokens
    assert found.given == 5
    # 10 + 150 + 40 ms, and the slower token of the five is not the median.
    assert found.first_token.stats.p50 == pytest.approx(0.200)
    assert found.later_token.stats.p50 == pytest.approx(0.002)
    assert found.tokens_per_second == pytest.approx(2 / 0.002)
    assert found.first_token.speed_up is not None and found.later_token.speed_up is not None
    assert found.first_token.speed_up.value == pytest.approx(400 / 200)
    assert found.later_token.speed_up.value == pytest.approx(8 / 2)
    assert other.tokens.first_token.speed_up is None
    assert latency.whole.stats.p50 == pytest.approx(0.010 + 0.150 + 0.040 + 60 * 0.002 + 0.001)


def test_tables(model: ModelFigures) -> None:
    first, second = tokens.parts_table(model).rows
    assert first[1:] == ("10.0", "300", "90.0", "400", "1", "8.00", "1", "125")
    assert isinstance(second[0], Mark) and second[0].name == "tiny-w8a8 (cpu)"
    assert second[1:5] == ("10.0", "150", "40.0", "200")
    assert isinstance(second[5], Figure) and second[5].value == "2.00"
    assert isinstance(second[7], Figure) and second[7].value == "4.00"
    assert [row[1:] for row in tokens.rate_table(model, 10.0).rows] == [
        ("125", "250"),
        ("500", "1,000"),
    ]
    own = tokens.own_work_table(model, 2)
    assert own.heads[1:] == ("1\N{NO-BREAK SPACE}s", "10\N{NO-BREAK SPACE}s")
    assert own.caption.endswith("in batches of 2")
    assert own.rows[1][1:] == (Figure("20", "2 chunks, 1 start"), Figure("60", "2 chunks, 1 start"))


def test_one_that_failed_has_a_row_that_says_so() -> None:
    made = whisper_report()
    failed = replace(made.results[1], cells=(), failure="out of memory")
    (model,) = figures_of(replace(made, results=(made.results[0], failed))).models
    for table in (
        tokens.parts_table(model),
        tokens.rate_table(model, 10.0),
        tokens.own_work_table(model, 1),
    ):
        assert set(table.rows[1][1:]) == {"failed"}


def widths(figure: Picture) -> list[float]:
    return [round(bar.get_width(), 6) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]


def test_pictures(model: ModelFigures) -> None:
    figure = rows.figure_of_first_token(model)
    assert widths(figure) == [10, 300, 90, 10, 150, 40]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["features", "encoder", "prefill"]
    assert widths(rows.figure_of_later_token(model)) == [8, 2]


def test_sentences_say_what_was_written() -> None:
    said = " ".join(conclusions(figures_of(whisper_report()))).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "These are not times of the same work: it took 60 steps, 1 chunk and 1 start, float 40 steps, "
        "1 chunk and 1 start. Its first token is there after 200 ms (2.00 times as fast as float), each later one after 2.00 ms (4.00 "
        "times as fast as float)." in said
    )
    # At one second both wrote twenty.
    short = replace(whisper_report(), results=tuple(_first_cell(whisper_report())))
    assert "the same work" not in " ".join(conclusions(figures_of(short)))


def _first_cell(made: Report) -> list[Result]:
    return [replace(result, cells=result.cells[:1]) for result in made.results]


def test_the_page_has_its_section_and_others_do_not(tmp_path: Path) -> None:
    page = page_of(figures_of(whisper_report()))
    assert [section.anchor for section in page.sections][:2] == ["latency", "tokens"]
    assert "tokens" not in [section.anchor for section in page_of(figures_of(report())).sections]
    paths = write_pages(whisper_report(), tmp_path)
    assert {"first-token-random-tiny.png", "later-token-random-tiny.png"} <= {
        path.name for path in paths
    }
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| decoding | transcribe; language en; temperatures 0 |" in markdown


def with_tokens(made: Report, **changes: object) -> Report:
    """Change what is told of the tokens of the last candidate."""

    def changed(cell: Cell) -> Cell:
        assert cell.tokens is not None
        return replace(cell, tokens=replace(cell.tokens, **changes))  # type: ignore[arg-type]

    *others, last = made.results
    return replace(made, results=(*others, replace(last, cells=tuple(map(changed, last.cells)))))


def repeated(made: Report, times: int) -> Report:
    """The same runs several times over: three are too few to judge by."""

    def longer(cell: Cell) -> Cell:
        assert cell.tokens is not None
        kept = {name: value * times for name, value in vars(cell.tokens).items()}
        return replace(
            cell,
            prepare=cell.prepare * times,
            network=cell.network * times,
            text=cell.text * times,
            tokens=TokenCell(**kept),
        )

    return replace(
        made,
        method=replace(made.method, repeats=made.method.repeats * times),
        results=tuple(
            replace(result, cells=tuple(map(longer, result.cells))) for result in made.results
        ),
    )


def test_a_slower_token_is_a_regression_of_the_token_alone() -> None:
    old = repeated(whisper_report(), 5)
    assert not compare_reports(old, old).regressions
    slow = with_tokens(old, later=((4 * MS,) * 5,) * 15)
    worse = {change.what for change in compare_reports(old, slow).regressions}
    assert worse == {
        "each later token at 1 s x 1", "each later token at 10 s x 1",
        "each later token at 1 s x 2", "each later token at 10 s x 2",
        "each later token, mean of all shapes",
    }  # fmt: skip


def test_latency_is_not_judged_where_other_tokens_were_written() -> None:
    old = repeated(whisper_report(), 5)
    *others, last = with_tokens(old, steps=(1000,) * 15).results
    longer = tuple(
        replace(cell, network=tuple(9 * value for value in cell.network)) for cell in last.cells
    )
    new = replace(old, results=(*others, replace(last, cells=longer)))
    found = compare_reports(old, new)
    whole = [change for change in found.changes if change.what.startswith("latency at")]
    assert {change.verdict for change in whole} == {UNJUDGED}
    assert REGRESSION not in {change.verdict for change in found.changes}
    assert found.notes[-1].startswith(
        "tiny-w8a8 (cpu), or float, took other numbers of steps at 1 s x 1, 10 s x 1, "
    )
    asked = replace(old, method=replace(old.method, decoding="translate"))
    notes = compare_reports(old, asked).notes
    assert any(
        note.startswith("other decoding: transcribe; language en; temperatures 0, then translate; ")
        for note in notes
    )
