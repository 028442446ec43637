"""The command build, and inspect on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantized import w8a8

from speechquant.core.bundles import Bundle
from speechquant.pipeline.command import run


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return w8a8(tiny_bundle, tmp_path_factory.mktemp("built") / "w8a8").folder


def built(bundle: Path, out: Path, target: str, *more: str) -> int:
    pytest.importorskip("tensorrt_rtx", reason="needs speechquant[tensorrt-rtx]")
    command = ["build", str(bundle), str(out), "--backend", "tensorrt-rtx", "--target", target]
    return run([*command, "--lengths", "0.1,1,5", *more])


def test_build_and_inspect_as_json(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(quantized, tmp_path / "engine", "sm86", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["target"] == "sm86"
    assert document["limits"]["samples"] == {"least": 1600, "best": 16_000, "most": 80_000}
    assert document["engine_bytes"] == (tmp_path / "engine" / "model.engine").stat().st_size
    convolutions = document["products"][0]
    assert (convolutions["what"], convolutions["runs"]) == (
        "convolution with weights",
        "INT8 x INT8",
    )
    assert (convolutions["nodes"], convolutions["fall_back"]) == (8, 0)
    assert run(["inspect", str(tmp_path / "engine"), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    layers = inspected.pop("engine_layers")
    assert inspected == document
    assert sum(layer["precision"] == "INT8" for layer in layers) == document["layers"]["INT8"]


def test_inspect_shows_every_layer(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(quantized, tmp_path / "engine", "sm86") == 0
    said = capsys.readouterr().out
    assert "tensorrt-rtx for sm86" in said and "INT8 x INT8" in said
    assert run(["inspect", str(tmp_path / "engine")]) == 0
    text = capsys.readouterr().out
    assert "node_conv1d_7" in text
    assert "NOT INT8" not in text
    assert "every product that the graph quantizes multiplies INT8 by INT8" in text


def test_what_is_not_int8_stands_out(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(quantized, tmp_path / "engine", "t4") == 0
    assert "8 NOT INT8" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "engine")]) == 0
    text = capsys.readouterr().out
    assert "NOT INT8: node_conv1d_3 runs in FP16 x FP16" in text
    assert sum(line.endswith("NOT INT8") for line in text.splitlines()) == 8 + 1  # layers, count
    assert "every product" not in text


def test_errors_are_one_line(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(quantized, tmp_path / "engine", "gtx1080") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "'gtx1080' is no target" in lines[0]
    assert not (tmp_path / "engine").exists()


def test_pictures_of_an_engine(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(quantized, tmp_path / "engine", "sm86") == 0
    assert run(["inspect", str(tmp_path / "engine"), "--pictures", str(tmp_path / "p")]) == 1
    assert "pictures need the bundle that it was built from" in capsys.readouterr().err
