"""Two logs in one table and one picture: equal ones, unequal ones, and folders without a log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechquant.benchmarks.papers.gated_tables.loss_curves import PICTURE, read_losses, show
from speechquant.core.errors import OptionError

LOSSES = {10: 5.0, 20: 3.0, 30: 2.5}


def run_with(folder: Path, losses: dict[int, float]) -> Path:
    folder.mkdir()
    rows = [{"step": step, "loss": loss} for step, loss in losses.items()]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_a_run_that_went_on_alike_is_nought_from_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_with(tmp_path / "unbroken", LOSSES), run_with(tmp_path / "resumed", LOSSES)]
    show(runs, tmp_path / "out")
    assert "| resumed | 30 | 2.5000 | 0.0000 |" in capsys.readouterr().out
    assert (tmp_path / "out" / PICTURE).stat().st_size > 1000


def test_the_farthest_is_looked_for_at_steps_that_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {20: 3.25, 30: 2.4, 40: 9.0}
    show([run_with(tmp_path / "a", LOSSES), run_with(tmp_path / "b", other)], tmp_path / "out")
    assert "| b | 40 | 9.0000 | 0.2500 |" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no log\.jsonl; give a folder that a training wrote"):
        read_losses(tmp_path)
    with pytest.raises(OptionError, match="none: its log has no loss"):
        read_losses(run_with(tmp_path / "none", {}))
    runs = [run_with(tmp_path / "a", LOSSES), run_with(tmp_path / "b", {15: 1.0})]
    with pytest.raises(OptionError, match="no step in common"):
        show(runs, tmp_path / "out")


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    runs = [run_with(tmp_path / "a", LOSSES), run_with(tmp_path / "other" / "a", LOSSES)]
    with pytest.raises(OptionError, match="two folders of one name"):
        show(runs, tmp_path / "out")
