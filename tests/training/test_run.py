"""A run notes its losses, saves and scores at the steps that its settings say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speechquant.core.errors import OptionError
from speechquant.training.run import TrainingRun, train_to_end
from speechquant.training.schedule import RunSettings


def test_a_run_scores_between_its_saves_too(tmp_path: Path) -> None:
    settings = RunSettings(steps=10, warmup_steps=1, decay_steps=1, save_every=3, score_every=5)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    run = TrainingRun(tmp_path, settings, {"model": model}, optimizer)

    def take_step() -> dict[str, float]:
        run.descend(model(torch.ones(1)).sum())
        return {"loss": float(run.step)}

    train_to_end(run, settings, take_step, lambda: {"wer_dev": 50.0}, lambda: None)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 5, 6, 9, 10]
    assert [row["loss"] for row in rows] == [2.0, 4.5, 6.0, 8.0, 10.0]
    assert [row["step"] for row in rows if "wer_dev" in row] == [5, 10]


@pytest.mark.parametrize("name", ["warmup_steps", "decay_steps", "save_every", "score_every"])
def test_numbers_that_no_run_can_have(name: str) -> None:
    with pytest.raises(OptionError, match=rf"--{name.replace('_', '-')} 0: too low; give 1 or"):
        replace(RunSettings(), **{name: 0})
