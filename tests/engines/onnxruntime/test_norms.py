from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import GraphOf, operators, run

from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.onnxruntime.norms import fold_norms
from speechquant.engines.onnxruntime.products import fuse_products

CHANNELS, EPSILON, SCALE = 5, 1e-5, 0.125


def normed_product(inputs: int, bias: bool) -> ir.Model:
    """A product normalised over time, spelled as the exporter spells a group norm."""
    rng = np.random.default_rng(inputs)
    graph = GraphOf()
    weight = rng.integers(-127, 128, (inputs, CHANNELS)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, CHANNELS)
    factors = [graph.activation("x", SCALE), graph.weight("w", weight, scales, axis=1)]
    x = graph.add("MatMul", factors, "product")
    if bias:
        x = graph.add("Add", [x, graph.constant("b", np.arange(5, dtype=np.float32))], "biased")
    axes = graph.constant("axes", np.array([1]))
    mean = graph.add("ReduceMean", [x, axes], "mean", keepdims=1)
    square = graph.add("ReduceMean", [graph.add("Mul", [x, x], "xx"), axes], "ms", keepdims=1)
    squared = graph.add("Mul", [mean, mean], "mm")
    variance = graph.add("Sub", [square, squared], "variance")
    safe = graph.add("Add", [variance, graph.constant("e", np.float32(EPSILON))], "safe")
    inverse = graph.add("Reciprocal", [graph.add("Sqrt", [safe], "deviation")], "inverse")
    gain = graph.constant("gain", rng.normal(size=(1, CHANNELS)).astype(np.float32))
    scale = graph.add("Mul", [gain, inverse], "scale")
    offset = graph.constant("offset", rng.normal(size=(1, CHANNELS)).astype(np.float32))
    shift = graph.add("Sub", [offset, graph.add("Mul", [mean, scale], "moved")], "shift")
    graph.add("Add", [graph.add("Mul", [x, scale], "scaled"), shift], "y")
    return graph.model({"x": [2, "t", inputs]}, "y", [2, None, CHANNELS])


def expected_of(model: ir.Model, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The norm in float64, from its definition."""
    value = {
        name: initializer.const_value.numpy().astype(np.float64)
        for name, initializer in model.graph.initializers.items()
        if initializer.const_value is not None
    }
    levels = np.clip(np.rint(x.astype(np.float64) / SCALE), -128, 127)
    product = levels * SCALE @ (value["w_quantized"] * value["w_scale"]) + value.get("b", 0)
    mean, variance = product.mean(1, keepdims=True), product.var(1, keepdims=True)
    normed: np.ndarray = (product - mean) / np.sqrt(variance + EPSILON)  # type: ignore[type-arg]
    return normed * value["gain"] + value["offset"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [10, 3])
def test_the_norm_of_a_narrow_product_needs_no_pass_over_it(inputs: int, bias: bool) -> None:
    model = normed_product(inputs, bias)
    x = np.random.default_rng(1).normal(size=(2, 400, inputs)).astype(np.float32) * [[[3]], [[1]]]
    x = x.astype(np.float32)
    expected = expected_of(model, x)
    assert fuse_products(model) == 1
    assert fold_norms(model) == 1
    remove_unused(model)
    assert "MatMulIntegerToFloat" not in operators(model)
    assert operators(model).count("ReduceMean") == 1  # of the inputs alone
    np.testing.assert_allclose(run(model, {"x": x}), expected, rtol=2e-4, atol=2e-4)


def test_a_wide_product_stays() -> None:
    model = normed_product(40, bias=False)
    assert fuse_products(model) == 1
    assert fold_norms(model) == 0


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_scaling_that_is_no_norm_stays(per_frame: bool) -> None:
    """A shift for each frame cannot become a bias; nor is a product without means a norm."""
    graph = GraphOf()
    weight = np.ones((10, CHANNELS), np.int8)
    factors = [graph.activation("x", SCALE), graph.weight("w", weight, [1.0] * CHANNELS, axis=1)]
    x = graph.add("MatMul", factors, "product")
    half = graph.constant("half", np.full((1, CHANNELS), 0.5, np.float32))
    scaled = graph.add("Mul", [x, half], "scaled")
    if per_frame:
        axes = graph.constant("axes", np.array([1]))
        mean = graph.add("ReduceMean", [x, axes], "mean", keepdims=1)
        squares = graph.add("Mul", [x, x], "xx")
        square = graph.add("ReduceMean", [squares, axes], "ms", keepdims=1)
        scaled = graph.add("Mul", [graph.add("Add", [scaled, mean], "moved"), square], "again")
    shift = graph.constant("shift", np.arange(35, dtype=np.float32).reshape(1, 7, CHANNELS))
    graph.add("Add", [scaled, shift], "y")
    model = graph.model({"x": [1, 7, 10]}, "y", [1, 7, CHANNELS])
    feed = {"x": np.random.default_rng(0).normal(size=(1, 7, 10)).astype(np.float32)}
    before = run(model, feed)
    assert fuse_products(model) == 1
    fold_norms(model)
    np.testing.assert_allclose(run(model, feed), before, rtol=1e-5, atol=1e-5)


def test_a_product_that_something_else_reads_stays() -> None:
    graph_model = normed_product(10, bias=False)
    fuse_products(graph_model)
    product = next(n for n in graph_model.graph if n.op_type == "MatMulIntegerToFloat")
    graph_model.graph.append(ir.node("Neg", [product.outputs[0]]))
    assert fold_norms(graph_model) == 0
