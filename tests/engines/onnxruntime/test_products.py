from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from small_graphs import GraphOf, operators, run

from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.onnxruntime.products import fuse_products

WEIGHT = np.array([[1, -2], [3, 127], [-128, 5]], np.int8)
SCALES = [0.5, 0.25]


def product(bias: list[float] | None, *, zero_point: int = 128, kept: bool = False) -> GraphOf:
    graph = GraphOf()
    inputs = [graph.activation("x", 0.5, zero_point), graph.weight("w", WEIGHT, SCALES, axis=1)]
    result = graph.add("MatMul", inputs, "product")
    if bias is not None:
        added = graph.constant("bias", np.array(bias, np.float32))
        result = graph.add("Add", [added, result], "sum")
    graph.add("Identity" if not kept else "Neg", [result], "y")
    return graph


@pytest.mark.parametrize("bias", [None, [10.0, -0.5]])
@pytest.mark.parametrize("zero_point", [128, 0, 3])
def test_a_product_and_its_bias_become_one_kernel(
    bias: list[float] | None, zero_point: int
) -> None:
    model = product(bias, zero_point=zero_point).model({"x": [1, "t", 3]}, "y", [1, None, 2])
    x = np.array([[[1.0, -2.0, 0.5], [3.3, 100.0, -100.0]]], np.float32)
    assert fuse_products(model) == 1
    remove_unused(model)
    assert operators(model) == ["QuantizeLinear", "MatMulIntegerToFloat", "Identity"]
    # round half even, the type's own range, then exact arithmetic
    levels = np.clip(np.rint(x / 0.5) + zero_point, 0, 255) - zero_point
    expected = (levels * 0.5) @ (WEIGHT.astype(np.float64) * SCALES) + (bias or [0.0, 0.0])
    np.testing.assert_array_equal(run(model, {"x": x}), expected.astype(np.float32))


def test_a_bias_that_others_read_and_a_product_that_others_read_stay_right() -> None:
    graph = product(None)
    bias = graph.constant("bias", np.array([1.0, 2.0], np.float32))
    graph.add("Add", ["product", bias], "sum")
    graph.add("Mul", ["sum", "y"], "z")
    model = graph.model({"x": [1, "t", 3]}, "z", [1, None, 2])
    x = np.array([[[1.0, -2.0, 0.5]]], np.float32)
    before = run(model, {"x": x})
    assert fuse_products(model) == 1
    assert "Add" in operators(model), "the product is read twice: its bias cannot go into it"
    np.testing.assert_array_equal(run(model, {"x": x}), before)


@pytest.mark.parametrize("signed", [True, False])
def test_what_the_kernel_does_not_take_stays(signed: bool) -> None:
    graph = GraphOf()
    dtype = np.int8 if signed else np.uint16
    pair = [graph.constant("s", np.float32(1)), graph.constant("z", dtype(0))]
    levels = graph.add("QuantizeLinear", ["x", *pair], "q")
    x = graph.add("DequantizeLinear", [levels, *pair], "dq")
    graph.add("MatMul", [x, graph.weight("w", WEIGHT, SCALES, axis=1)], "y")
    model = graph.model({"x": [1, "t", 3]}, "y", [1, None, 2])
    assert fuse_products(model) == 0
    assert "MatMul" in operators(model)


def test_a_bias_that_is_one_number_for_all_channels_stays_an_add() -> None:
    model = product([1.5]).model({"x": [1, "t", 3]}, "y", [1, None, 2])
    x = np.array([[[1.0, -2.0, 0.5]]], np.float32)
    before = run(model, {"x": x})
    assert fuse_products(model) == 1
    assert "Add" in operators(model)
    np.testing.assert_array_equal(run(model, {"x": x}), before)


def test_a_weight_around_another_point_than_zero_stays() -> None:
    graph = GraphOf()
    inputs = [graph.activation("x", 0.5), graph.weight("w", WEIGHT, SCALES, axis=1)]
    graph.constants = [
        numpy_helper.from_array(np.array([1, 0], np.int8), tensor.name)
        if tensor.name == "w_zero_point"
        else tensor
        for tensor in graph.constants
    ]
    graph.add("MatMul", inputs, "y")
    assert fuse_products(graph.model({"x": [1, "t", 3]}, "y", [1, None, 2])) == 0


def test_a_product_that_is_the_graphs_output_keeps_its_name() -> None:
    graph = GraphOf()
    weight = graph.weight("w", WEIGHT, SCALES, axis=1)
    graph.add("MatMul", [graph.activation("x", 0.5), weight], "y")
    model = graph.model({"x": [1, "t", 3]}, "y", [1, None, 2])
    assert fuse_products(model) == 1
    assert [output.name for output in model.graph.outputs] == ["y"]
    assert run(model, {"x": np.ones((1, 1, 3), np.float32)}).shape == (1, 1, 2)
