from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from reports import report

from speechquant.benchmarks.report.record import REPORT_FILE, read_report, write_report
from speechquant.core.errors import ReportError


def test_what_is_written_is_read_again_to_the_nanosecond(tmp_path: Path) -> None:
    write_report(report(), tmp_path / REPORT_FILE)
    assert read_report(tmp_path / REPORT_FILE) == report()
    assert read_report(tmp_path) == report()


def test_each_clip_takes_four_numbers(tmp_path: Path) -> None:
    write_report(report(), tmp_path / REPORT_FILE)
    row = json.loads((tmp_path / REPORT_FILE).read_text())["results"][0]
    assert row["accuracy"]["words"][:3] == [[0, 0, 0, 5], [1, 0, 0, 5], [2, 0, 0, 5]]


def test_models_and_baselines() -> None:
    made = report()
    assert made.models == ("base", "other")
    assert [result.name for result in made.results_of("other")] == ["other (cpu)"]
    peer = made.results[2]
    assert made.baseline_of(peer) is made.results[0]
    assert peer.cell(2.0, 4) is peer.cells[4]
    assert peer.cell(3.0, 1) is None
    cell = peer.cells[0]
    assert cell.whole[0] == cell.prepare[0] + cell.network[0] + cell.text[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such report; check the path"),
        ("{", "not a report"),
        ("[]", "not a report of this version"),
        ('{"format": "speechquant.report/9"}', "not a report of this version"),
        ('{"format": "speechquant.report/1"}', "not as this version writes it"),
    ],
)
def test_what_is_no_report(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        read_report(path)
    assert str(path) in str(caught.value)


def test_float_that_could_not_be_run_is_not_compared_with() -> None:
    made = report()
    first, ours = made.results[:2]
    failed = replace(first, name="base (openvino)", cells=(), accuracy=None, failure="not here")
    assert replace(made, results=(failed, first, ours)).baseline_of(ours) is first
    assert replace(made, results=(first, failed, ours)).baseline_of(ours) is first
    assert replace(made, results=(failed, ours)).baseline_of(ours) is failed
    assert replace(made, results=(ours,)).baseline_of(ours) is None
