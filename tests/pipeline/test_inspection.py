"""What inspect says of a quantized bundle and of a table, and what it draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.scales import read_scales
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.graphs.stored_weights import stored_weights
from speechquant.pipeline.command import run

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    rng, lines = np.random.default_rng(0), []
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", rng.uniform(-0.1, 0.1, RATE_HZ), RATE_HZ)
        lines.append(json.dumps({"audio_filepath": f"{index}.wav", "text": "yes no"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    command = ["quantize", tiny_bundle.folder, folder / "out", "--data", folder / "data.jsonl"]
    assert run([*map(str, command), "--threads", "1"]) == 0
    return folder / "out"


def printed(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_bundle_and_its_table(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_bundle = json.loads(printed(["inspect", quantized, "--json"], capsys))
    of_table = json.loads(printed(["inspect", quantized / "scales.json", "--json"], capsys))
    table = read_scales(quantized / "scales.json")
    assert of_bundle["precision"] == "w8a8"
    assert of_bundle["tensors"] == of_table["tensors"]
    assert {name: row["scale"] for name, row in of_table["tensors"].items()} == {
        name: row.scale for name, row in table.tensors.items()
    }
    text = printed(["inspect", quantized / "scales.json"], capsys)
    assert f"p = {table.percentile:.2f}" in text
    assert all(name in text for name in table.tensors)


def test_pictures(quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "pictures"
    document = json.loads(printed(["inspect", quantized, "--pictures", folder, "--json"], capsys))
    names = ["amplitudes.png", "layers.png", "percentiles.png"]
    assert document["pictures"] == [str(folder / name) for name in names]
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_need_statistics(
    tiny_bundle: Bundle, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (tiny_bundle.folder, quantized / "scales.json"):
        assert run(["inspect", str(source), "--pictures", str(tmp_path / "pictures")]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "pictures").exists()


def test_stored_weights_are_the_rounded_ones(tiny_bundle: Bundle, quantized: Path) -> None:
    before = {weight.name: weight for weight in constant_weights(tiny_bundle.only_graph)}
    after = stored_weights(load_bundle(quantized).only_graph)
    assert [weight.name for weight in after] == list(before)
    for weight in after:
        original = before[weight.name]
        assert weight.layer == original.layer
        channel_axis = original.channel_axis
        others = tuple(axis for axis in range(original.values.ndim) if axis != channel_axis)
        step = np.abs(original.values).max(axis=others, keepdims=True) / 127
        assert (np.abs(weight.values - original.values) <= 0.5001 * step).all()
