from __future__ import annotations

import sys
from collections.abc import Sequence
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

BLOCK = "model.encoder.layers.1."


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return new_tokens([" turn the light on"])


def weights_of(*values: float, also: Sequence[str] = ()) -> list[dict[str, torch.Tensor]]:
    """Return checkpoints of one block that say their value; the last has `also` as well."""
    given = [{"model.encoder.layers.0.fc2.weight": torch.full((2,), value)} for value in values]
    given[-1].update({key: torch.full((2,), values[-1]) for key in also})
    return given


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


def test_a_block_that_some_lack_adds_nothing_there() -> None:
    keys = [f"{BLOCK}{name}" for name in ("fc1.weight", "fc2.weight", "self_attn.out_proj.bias")]
    found = mean_weights(weights_of(1.0, 2.0, 6.0, also=keys))
    assert [found[key][0].item() for key in keys] == [6.0, 2.0, 2.0]
    assert found["model.encoder.layers.0.fc2.weight"][0].item() == 3.0


@pytest.mark.parametrize(
    "also", ["model.decoder.layers.1.fc2.weight", "model.encoder.layers.0.fc1.weight"]
)
def test_nothing_else_may_be_lacking(also: str) -> None:
    with pytest.raises(ValueError, match="is not in all"):
        mean_weights(weights_of(1.0, 2.0, also=[also]))


def test_the_last_has_the_most_blocks() -> None:
    with pytest.raises(ValueError, match="give the one of most blocks last"):
        mean_weights(weights_of(1.0, 2.0, also=[f"{BLOCK}fc1.weight"])[::-1])


def test_shapes_are_the_same() -> None:
    given = [*weights_of(1.0), {"model.encoder.layers.0.fc2.weight": torch.zeros(3)}]
    with pytest.raises(ValueError, match="has not the same shape"):
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
