"""Trainings in two processes over gloo, this one and another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shared_trainings
import torch
from shared_artifacts import SharedArtifacts
from shared_trainings import (
    KDQ_SETTINGS,
    Lines,
    ctc_weights_of_one,
    kdq_weights_of_one,
    result_of,
    stage_weights_of_one,
)
from two_processes import first_of_two

from speechquant.training.processes import ALONE, Processes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainings(shared: SharedArtifacts) -> Path:
    """Return the folder of every training's folder, after two processes ran them all."""
    return shared.folder("trainings", _train_all)


def _train_all(folder: Path) -> None:
    folder.mkdir()
    with first_of_two(str(shared_trainings.__file__), str(folder)):
        shared_trainings.train_all(folder)


def results(folder: Path) -> tuple[Any, Any]:
    """Return what a training has given in each of the two processes."""
    return result_of(0, folder), result_of(1, folder)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_item_is_in_one_share() -> None:
    shares = [list(Processes(3, rank).share(range(8))) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [[Processes(3, rank).place(turn) for turn in range(2)] for rank in range(3)] == [
        [0, 3], [1, 4], [2, 5],
    ]  # fmt: skip
    assert ALONE.divided([1, 2], lambda own: [10 * number for number in own]) == [10, 20]


def test_two_processes_begin_as_the_first_and_step_down_their_mean(trainings: Path) -> None:
    first, second = results(trainings / "train_lines")
    start = Lines(1.0)
    for name, value in start.state_dict().items():
        assert torch.equal(first["begun"][name], value)
        assert torch.equal(second["begun"][name], value)
        assert torch.equal(first["model"][name], second["model"][name])
    # By hand: inputs x and 2x, the mean of the losses, a gradient norm below 1, a rate of 0.5.
    given = 0.02 * torch.tensor([1.0, 2.0, 3.0])
    gradient = ((given + 2 * given) / 2).expand(2, 3)
    gradient_of_second = (start.all.detach() @ (2 * given)) / 2
    assert torch.cat([gradient.flatten(), gradient_of_second]).norm() < 1
    found = first["model"]
    expected = start.all * (1 - 0.5 * 0.1) - 0.5 * gradient
    torch.testing.assert_close(found["all"], expected.detach(), rtol=0, atol=1e-5)
    expected = start.second * (1 - 0.5 * 0.1) - 0.5 * gradient_of_second
    torch.testing.assert_close(found["second"], expected.detach(), rtol=0, atol=1e-5)
    # What nobody uses has no gradient, as in one process: no weight decay either.
    assert torch.equal(found["nobody"], start.nobody)


def test_the_first_process_alone_writes(trainings: Path) -> None:
    folder = trainings / "train_lines"
    first, second = results(folder)
    assert {path.name for path in (folder / "of-0").iterdir()} == {
        "checkpoint", "log.jsonl", "state.pt",
    }  # fmt: skip
    assert list((folder / "of-1").iterdir()) == []
    (row,) = log_of(folder / "of-0")
    # The mean of the losses of both, and what both have scored, in order.
    assert (row["loss"], row["wer_0"], row["wer_1"], row["wer_2"]) == (0.5, 10, 20, 30)
    for result in (first, second):
        assert (
            "runs of [0, 1] steps there; give an --out that all machines share"
            in (result["refused"])
        )


def assert_alike(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


def test_a_ctc_model_killed_in_two_processes_is_that_of_one(
    trainings: Path, tmp_path: Path
) -> None:
    folder = trainings / "train_ctc"
    first, second = results(folder)
    assert first["taken"] == second["taken"] == [0, 1, 1]
    assert all(map(torch.equal, first["model"].values(), second["model"].values()))
    assert_alike(first["model"], ctc_weights_of_one(tmp_path, processes=2))
    rows = log_of(folder / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert "wer_self" in rows[-1]
    assert (folder / "run" / "checkpoint" / "model.safetensors").is_file()


def test_the_stages_of_a_wavlm_in_two_processes_are_those_of_one(
    trainings: Path, tmp_path: Path
) -> None:
    folder = trainings / "train_stages"
    first, second = results(folder)
    assert all(map(torch.equal, first["model"].values(), second["model"].values()))
    assert_alike(first["model"], stage_weights_of_one(tmp_path / "one", processes=2))
    assert [row["step"] for row in log_of(folder / "run" / "whole")] == [1, 2]


def test_a_kdq_student_in_two_processes_is_that_of_one(trainings: Path, tmp_path: Path) -> None:
    folder = trainings / "train_kdq"
    first, second = results(folder)
    assert all(map(torch.equal, first["model"].values(), second["model"].values()))
    assert_alike(first["model"], kdq_weights_of_one(tmp_path, processes=2))
    row = log_of(folder / "run")[-1]
    assert row["step"] == KDQ_SETTINGS.steps
    assert {"wer_self", "cer_self"} <= row.keys()
    assert (folder / "run" / "checkpoint" / "model.safetensors").is_file()
