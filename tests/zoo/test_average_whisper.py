from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechquant.zoo.average_whisper import main, mean_weights, write_average
from speechquant.zoo.whisper_model import (
    HEAD_FILE,
    WEIGHTS_FILE,
    Tokens,
    new_tokens,
    new_whisper,
    save_whisper,
)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return new_tokens([" turn the light on"])


def test_every_weight_is_the_mean(tokens: Tokens, tmp_path: Path) -> None:
    for number in range(3):
        torch.manual_seed(number)
        folder = tmp_path / str(number)
        save_whisper(new_whisper(tokens, encoder_layers=1), tokens, folder)
        save_file({"bias": torch.full((2,), float(number)).half()}, folder / HEAD_FILE)
        (folder / "note").write_text(str(number))
    folders = [tmp_path / str(number) for number in range(3)]
    write_average(folders, tmp_path / "mean")
    given = [load_file(folder / WEIGHTS_FILE) for folder in folders]
    found = load_file(tmp_path / "mean" / WEIGHTS_FILE)
    assert found.keys() == given[0].keys()
    for key, weight in found.items():
        expected = torch.stack([weights[key].float() for weights in given]).mean(0)
        torch.testing.assert_close(weight.float(), expected, rtol=1e-3, atol=1e-4)
    assert load_file(tmp_path / "mean" / HEAD_FILE)["bias"].tolist() == [1.0, 1.0]
    assert (tmp_path / "mean" / "note").read_text() == "2"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"a": 2}, {"a": 3}, "a has not the same shape in all"),
        ({"a": 2}, {"a": 2, "b": 2}, "b has not the same shape in all"),
        ({"a": 2, "b": 2}, {"a": 2}, "the last has no b"),
    ],
)
def test_shapes_are_the_same(one: dict[str, int], other: dict[str, int], message: str) -> None:
    given = [{key: torch.zeros(size) for key, size in sizes.items()} for sizes in (one, other)]
    with pytest.raises(ValueError, match=message):
        mean_weights(given)


def test_what_has_no_mean_is_told_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "mean"
    monkeypatch.setattr(sys, "argv", ["average", str(tmp_path / "empty"), "--out", str(out)])
    with pytest.raises(SystemExit):
        main()
    assert str(tmp_path / "empty" / WEIGHTS_FILE) in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
