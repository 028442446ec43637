from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError, OutputExistsError, ScaleError
from speechquant.core.graphs import INPUT, OUTPUT
from speechquant.core.scales import (
    Bits,
    CalibrationData,
    Scale,
    ScaleTable,
    largest_level,
    read_scales,
    require_fit,
    scales_document,
    write_scales,
)

TABLE = ScaleTable(
    model_sha256="ab" * 32,
    method="stablequant",
    bits=Bits(weights=4, activations=8),
    tensors={"x": Scale("conv.0", 0.1, 12.7), "y": Scale("head", 1 / 3, 42.0 + 1e-13)},
    percentile=0.07,
    clipped_layers=("conv.0",),
    float_layers=("block.1", "pos_conv"),
    data=CalibrationData("cd" * 32, 12, 34.56),
    notes=("made by hand",),
)


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        ScaleTable("m", "max", Bits(), {}),
        replace(TABLE, symmetric=False, tensors={"x": Scale("conv.0", 1e-30, 1.0, 255)}),
        replace(TABLE, placement=OUTPUT),
    ],
)
def test_round_trip(tmp_path: Path, table: ScaleTable) -> None:
    path = tmp_path / "folder" / "scales.json"
    write_scales(table, path)
    assert read_scales(path) == table
    assert read_scales(path).key == table.key
    assert path.read_text() == scales_document(table)


def test_a_table_of_before_placement_is_of_inputs(tmp_path: Path) -> None:
    document = json.loads(scales_document(TABLE))
    assert document.pop("placement") == INPUT
    path = tmp_path / "scales.json"
    path.write_text(json.dumps(document))
    assert read_scales(path) == TABLE


def test_a_table_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    write_scales(TABLE, path)
    with pytest.raises(OutputExistsError, match="already there"):
        write_scales(replace(TABLE, notes=()), path)
    assert read_scales(path) == TABLE
    write_scales(replace(TABLE, notes=()), path, force=True)
    assert read_scales(path).notes == ()


def test_levels() -> None:
    assert [largest_level(bits) for bits in (2, 4, 8, 16)] == [1, 7, 127, 32767]
    assert Bits(4, 8).name == "W4A8"
    for bits in (1, 17, 0, -8):
        with pytest.raises(OptionError, match=f"{bits} bits for activations"):
            Bits(8, bits)


def test_the_key_is_of_what_a_table_does() -> None:
    same = replace(
        TABLE, method="max", percentile=None, clipped_layers=(), data=None, notes=(),
        tensors=dict(reversed(list(TABLE.tensors.items()))), float_layers=("pos_conv", "block.1"),
    )  # fmt: skip
    assert same.key == TABLE.key
    others = [
        replace(TABLE, model_sha256="0"),
        replace(TABLE, bits=Bits(8, 8)),
        replace(TABLE, symmetric=False),
        replace(TABLE, placement=OUTPUT),
        replace(TABLE, float_layers=("block.1",)),
        replace(TABLE, tensors={**TABLE.tensors, "x": Scale("conv.0", 0.1000001, 12.7)}),
        replace(TABLE, tensors={**TABLE.tensors, "x": Scale("conv.0", 0.1, 12.7, 3)}),
        replace(TABLE, tensors={"x": TABLE.tensors["x"]}),
    ]
    assert len({TABLE.key, *(other.key for other in others)}) == 1 + len(others)


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda table: table.update({key: value})


def _row(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda table: table["tensors"]["x"].update(values)


WRITES = "not as this version writes it"
MALFORMED = [
    (_set("format", "speechquant.scales/2"), "not in the format 'speechquant.scales/1'"),
    (lambda table: table.pop("format"), "not in the format"),
    *[
        (lambda table, key=key: table.pop(key), WRITES)
        for key in ("model_sha256", "method", "bits", "tensors", "data", "notes")
    ],
    (lambda table: table.pop("clipped_layers"), WRITES),
    (_set("surprise", 1), WRITES),
    (_set("placement", "somewhere"), "no placement 'somewhere'; choose input, output"),
    (_set("tensors", [1, 2]), WRITES),
    (_set("tensors", {"x": 0.5}), WRITES),
    (_set("bits", 8), WRITES),
    (_set("bits", {"weights": "8", "activations": 8}), WRITES),
    (_set("bits", {"weights": 1, "activations": 8}), "1 bits for weights"),
    (_set("bits", {"weights": 8, "activations": 17}), "17 bits for activations"),
    (_set("data", {"sha256": "x"}), WRITES),
    (_set("float_layers", 3), WRITES),
    (lambda table: table["tensors"]["x"].pop("scale"), WRITES),
    (_row(surprise=1), WRITES),
    (_row(scale=0.0), r"the scale of x is 0\.0, it must be above zero and finite"),
    (_row(scale=-1), r"the scale of x is -1\.0, it must be above zero"),
    (_row(scale=float("nan")), "the scale of x is nan, it must be"),
    (_row(scale=float("inf")), "the scale of x is inf, it must be"),
    (_row(zero_point=3), "the zero point of x is 3, outside 0 to 0"),
    (_row(zero_point=-1), "the zero point of x is -1, outside 0 to 0"),
    (_row(scale="0.5"), WRITES),
    (_row(scale=None), WRITES),
    (_row(scale=10**400), WRITES),
    (_row(zero_point="0"), WRITES),
    (_row(layer=3), WRITES),
    (_set("model_sha256", 5), WRITES),
    (_set("float_layers", "head"), WRITES),
    (_set("bits", {"weights": 8.5, "activations": 8}), WRITES),
]


@pytest.mark.parametrize(("spoil", "message"), MALFORMED)
def test_malformed_tables_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    document = json.loads(scales_document(TABLE))
    spoil(document)
    path = tmp_path / "scales.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ScaleError, match=rf"scales\.json: .*{message}"):
        read_scales(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"[]", b"3", b'{"format": ', b"\xff\xfe\x00"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scales.json"
    path.write_bytes(content)
    with pytest.raises(ScaleError, match=r"scales\.json: not .*speechquant calibrate"):
        read_scales(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="no such scale table"):
        read_scales(tmp_path / "scales.json")
    with pytest.raises(ScaleError, match=r"cannot be read .Is a directory"):
        read_scales(tmp_path)


def test_asymmetric_zero_points_go_to_the_last_level(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    rows = {"x": Scale("conv.0", 0.1, 1.0, 16)}
    table = ScaleTable("m", "ema", Bits(8, 4), rows, symmetric=False)
    write_scales(table, path)
    with pytest.raises(ScaleError, match="the zero point of x is 16, outside 0 to 15"):
        read_scales(path)


def fitting(bundle: Bundle) -> ScaleTable:
    rows = {name: Scale(layer, 0.1, 12.7) for name, layer in bundle.spec.layers.items()}
    return ScaleTable(bundle.model_sha256, "max", Bits(), rows)


def test_a_table_that_fits(tiny_bundle: Bundle) -> None:
    table = fitting(tiny_bundle)
    require_fit(table, tiny_bundle, "here")
    last = {name: row for name, row in table.tensors.items() if row.layer != "head"}
    require_fit(replace(table, tensors=last, float_layers=("head",)), tiny_bundle, "here")


def test_tables_that_do_not_fit(tiny_bundle: Bundle) -> None:
    table = fitting(tiny_bundle)
    names = list(table.tensors)
    some = {name: table.tensors[name] for name in names[2:]}
    spoilt = [
        (replace(table, model_sha256="0" * 64), r"here: made for model 00000000\.\.\., "),
        (replace(table, tensors=some), f"here: no scale for {names[0]} and 1 more tensors of"),
        (replace(table, tensors={**table.tensors, "z": table.tensors[names[0]]}), "has no z"),
        (replace(table, float_layers=("block.9",)), r"has no block\.9"),
    ]
    for spoilt_table, message in spoilt:
        with pytest.raises(ScaleError, match=message):
            require_fit(spoilt_table, tiny_bundle, "here")
