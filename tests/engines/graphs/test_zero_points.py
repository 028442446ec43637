from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from small_graphs import GraphOf, run

from speechquant.core.errors import OptionError
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.graphs.zero_points import is_asymmetric, move_zero_points

SCALE = 0.1
# Halves, both ends and beyond, and everything between.
VALUES = np.concatenate(
    [np.arange(-140, 141) * 0.05, [-0.0, 1e30, -1e30, 12.75, 12.85, -12.85]]
).astype(np.float32)


def pair(zero_point: int, dtype: type[np.generic], bound: float | None = None) -> ir.Model:
    """Q and DQ, behind a Clip where the levels end before the type does."""
    graph = GraphOf()
    source, dims = "x", [len(VALUES)]
    if bound is not None:
        bounds = [graph.constant(n, np.float32(v)) for n, v in (("l", -bound), ("h", bound))]
        source = graph.add("Clip", ["x", *bounds], "clipped")
    inputs = [graph.constant("s", np.float32(SCALE)), graph.constant("z", dtype(zero_point))]
    levels = graph.add("QuantizeLinear", [source, *inputs], "levels")
    graph.add("DequantizeLinear", [levels, *inputs], "y")
    model = graph.model({"x": dims}, "y", dims)
    model.graph.opset_imports[""] = 21  # from which on integers may have 16 bits
    model.ir_version = 10
    return model


def zero_point_of(model: ir.Model) -> NDArray[np.generic]:
    (node,) = (node for node in model.graph if node.op_type == "QuantizeLinear")
    assert node.inputs[2] is not None and node.inputs[2].const_value is not None
    return node.inputs[2].const_value.numpy()


def by_hand(zero_point: int, lowest: int, highest: int) -> NDArray[np.float32]:
    levels = np.clip(np.rint(VALUES / np.float32(SCALE)) + zero_point, lowest, highest) - zero_point
    return levels.astype(np.float32) * np.float32(SCALE)


@pytest.mark.parametrize("bound", [None, 31 * SCALE])
@pytest.mark.parametrize(
    ("unsigned", "middle", "signed"), [(np.uint8, 128, np.int8), (np.uint16, 32768, np.int16)]
)
def test_dequantized_values_are_the_same_bits_either_way(
    unsigned: type[np.generic], middle: int, signed: type[np.generic], bound: float | None
) -> None:
    model = pair(middle, unsigned, bound)
    expected = run(model, {"x": VALUES})
    if bound is None:
        np.testing.assert_array_equal(expected, by_hand(middle, 0, 2 * middle - 1))
    move_zero_points(model, QdqFormat.S8)
    assert (zero_point_of(model).dtype, zero_point_of(model)) == (np.dtype(signed), 0)
    np.testing.assert_array_equal(run(model, {"x": VALUES}), expected)
    move_zero_points(model, QdqFormat.U8)
    assert (zero_point_of(model).dtype, zero_point_of(model)) == (np.dtype(unsigned), middle)
    np.testing.assert_array_equal(run(model, {"x": VALUES}), expected)
    assert set(model.graph.initializers) >= {"s"} and "z" not in model.graph.initializers


def test_what_is_spelled_so_already_stays() -> None:
    model = pair(0, np.int8)
    before = ir.to_proto(model).SerializeToString()
    move_zero_points(model, QdqFormat.S8)
    assert ir.to_proto(model).SerializeToString() == before


def test_asymmetric_integers_are_only_written_unsigned() -> None:
    model = pair(3, np.uint8)
    before = ir.to_proto(model).SerializeToString()
    assert is_asymmetric(model) and not is_asymmetric(pair(128, np.uint8))
    with pytest.raises(OptionError, match="levels: zero point 3 of uint8 is asymmetric"):
        move_zero_points(model, QdqFormat.S8)
    move_zero_points(model, QdqFormat.U8)
    assert ir.to_proto(model).SerializeToString() == before
    signed = pair(-100, np.int8)
    expected = run(signed, {"x": VALUES})
    move_zero_points(signed, QdqFormat.U8)
    assert zero_point_of(signed) == 28
    np.testing.assert_array_equal(run(signed, {"x": VALUES}), expected)
