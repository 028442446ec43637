"""A run notes its losses, saves and scores at the steps that its settings say."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speechquant.core.errors import OptionError
from speechquant.training.command_line import (
    begin,
    run_parser,
    settings_of,
    train_in_processes,
)
from speechquant.training.run import TrainingRun, train_to_end
from speechquant.training.samples import Extra, Sample, shares_of
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


def options_of(*arguments: str) -> Namespace:
    return run_parser(None, "train", RunSettings()).parse_args(arguments)


def begun(*arguments: str, **facts: object) -> None:
    options = options_of(*arguments)
    begin(options, settings_of(options, RunSettings()), **facts)


def test_a_run_goes_on_for_more_steps_and_with_nothing_else_changed(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "run"))
    begun(*out, "--steps", "10", teacher="one")
    begun(*out, "--steps", "20", "--decay-steps", "5", "--save-every", "2", teacher="one")
    known = (tmp_path / "run/settings.json").read_text()
    for arguments, facts, said in (
        (("--batch-seconds", "7"), {"teacher": "one"}, "batch_seconds 42.0, not 7.0"),
        (("--extra-data", "here,share=0.1"), {"teacher": "one"}, "extra_data"),
        ((), {"teacher": "two"}, "teacher one, not two"),
    ):
        with pytest.raises(OptionError, match=f"holds a run with {said}.*another --out"):
            begun(*out, *arguments, **facts)
    assert (tmp_path / "run/settings.json").read_text() == known


def test_numbers_and_places_that_no_training_takes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = ("--out", str(tmp_path / "run"))
    with pytest.raises(OptionError, match="--steps 0: too low"):
        begun(*out, "--steps", "0")
    for arguments, said in (
        ((*out, "--threads", "-1"), "error: --threads -1: too low"),
        (("--out", str(tmp_path / "file")), "file: is a file; give --out a folder"),
    ):
        with pytest.raises(SystemExit, match=said):
            train_in_processes(pytest.fail, options_of(*arguments))
    for text in ("here,share=-1", "here,share=nan", "here,hold_out=-1"):
        with pytest.raises(ValueError, match="at least 0"):
            Extra.parse(text)


def test_where_no_clip_is_ever_drawn() -> None:
    sample = Sample(np.zeros(1, np.int16), "one")
    assert shares_of([(0.5, [sample]), (0.5, [])]) == [0.5, 0.0]
    with pytest.raises(OptionError, match="nothing to train on"):
        shares_of([(0.0, [sample]), (0.5, [])])
