"""The graph for OpenVINO against NumPy in float64, and against the bundle's own graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from quantized import w8a8
from shared_artifacts import SharedArtifacts
from small_graphs import GraphOf, operators, run
from tiny import VARIANTS

from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.openvino.convolutions import spell_as_images
from speechquant.engines.openvino.few_channels import put_groups_together
from speechquant.engines.openvino.float_weights import give_float_weights
from speechquant.engines.openvino.norms import spell_instance_norms
from speechquant.engines.openvino.plugin import openvino_model, rewrite_for_openvino

CHANNELS, KERNEL, STRIDE, EPSILON, SCALE = 36, 4, 2, 1e-2, 0.05
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (CHANNELS, 1, KERNEL)).astype(np.int8)
WEIGHT_SCALES = RNG.uniform(0.0005, 0.002, CHANNELS)
SECOND = RNG.integers(-127, 128, (3, CHANNELS, 3)).astype(np.int8)
GAIN, OFFSET = RNG.normal(size=(CHANNELS, 1)), RNG.normal(size=(CHANNELS, 1))
_QUICK = ("hubert-layer", "wav2vec2-group")
X = RNG.normal(size=(2, 40)).astype(np.float32)


def front_end() -> ir.Model:
    """Convolution, norm over time as the exporter spells it, GELU, convolution, transpose."""
    graph = GraphOf()
    x = graph.add("Unsqueeze", ["x", graph.constant("channel", np.array([1]))], "wave")
    weight = graph.weight("w", WEIGHT, WEIGHT_SCALES, axis=0)
    x = graph.add("Conv", [graph.activation(x, SCALE), weight], "c", strides=[STRIDE])
    time = graph.constant("time", np.array([2]))
    mean = graph.add("ReduceMean", [x, time], "mean", keepdims=1)
    square = graph.add("ReduceMean", [graph.add("Mul", [x, x], "xx"), time], "ms", keepdims=1)
    variance = graph.add("Sub", [square, graph.add("Mul", [mean, mean], "mm")], "variance")
    safe = graph.add("Add", [variance, graph.constant("e", np.float32(EPSILON))], "safe")
    inverse = graph.add("Reciprocal", [graph.add("Sqrt", [safe], "deviation")], "inverse")
    gain = graph.constant("gain", GAIN.astype(np.float32))
    scale = graph.add("Mul", [gain, inverse], "scale")
    offset = graph.constant("offset", OFFSET.astype(np.float32))
    shift = graph.add("Sub", [offset, graph.add("Mul", [mean, scale], "moved")], "shift")
    x = graph.add("Add", [graph.add("Mul", [x, scale], "scaled"), shift], "normed")
    x = graph.activation(graph.add("Gelu", [x], "gelu"), SCALE)
    x = graph.add("Conv", [x, graph.weight("v", SECOND, [0.01] * 3, axis=0)], "d", pads=[1, 0])
    graph.add("Transpose", [x], "y", perm=[0, 2, 1])
    return graph.model({"x": [2, "n"]}, "y", [2, None, 3])


def normed_by_hand() -> NDArray[np.float64]:
    """What stands before the GELU."""
    levels = np.clip(np.rint(X / np.float32(SCALE)), -128, 127) * np.float64(np.float32(SCALE))
    windows = np.lib.stride_tricks.sliding_window_view(levels, KERNEL, axis=1)[:, ::STRIDE]
    weight = WEIGHT[:, 0] * np.float32(WEIGHT_SCALES)[:, None].astype(np.float64)
    c = np.einsum("btk,ck->bct", windows, weight)
    deviation = np.sqrt(c.var(2, keepdims=True) + np.float32(EPSILON))
    return (c - c.mean(2, keepdims=True)) / deviation * GAIN + OFFSET


def test_a_norm_over_time_becomes_one_operator() -> None:
    model = front_end()
    expected = run(model, {"x": X})
    assert spell_instance_norms(model) == 1
    remove_unused(model)
    count = Counter(operators(model))
    assert count["InstanceNormalization"] == 1
    assert count["ReduceMean"] == count["Sqrt"] == count["Mul"] == 0
    np.testing.assert_allclose(run(model, {"x": X}), expected, atol=2e-3)
    (norm,) = (node for node in model.graph if node.op_type == "InstanceNormalization")
    norm.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs[0] = norm.outputs[0]
    np.testing.assert_allclose(run(model, {"x": X}), normed_by_hand(), atol=1e-5)


def test_only_a_convolution_that_openvino_gets_wrong_has_float_weights() -> None:
    model = front_end()
    expected = run(model, {"x": X})
    assert give_float_weights(model) == 1  # read by a square, two means and a product
    remove_unused(model)
    first, second = (node for node in model.graph if node.op_type == "Conv")
    assert first.inputs[1] is not None and first.inputs[1].const_value is not None
    values = WEIGHT * WEIGHT_SCALES.astype(np.float32)[:, None, None]
    np.testing.assert_array_equal(first.inputs[1].const_value.numpy(), values)
    assert second.inputs[1] is not None and second.inputs[1].producer() is not None
    np.testing.assert_array_equal(run(model, {"x": X}), expected)


def test_convolutions_around_the_norm_get_a_height() -> None:
    model = front_end()
    spell_instance_norms(model)
    remove_unused(model)
    expected = run(model, {"x": X})
    assert spell_as_images(model) == 2
    remove_unused(model)
    kernels = [
        list(node.inputs[1].shape or ()) if node.inputs[1].const_value else None
        for node in model.graph
        if node.op_type == "Conv" and node.inputs[1] is not None
    ]
    assert len(kernels) == 2
    assert operators(model).count("Squeeze") == 1
    np.testing.assert_allclose(run(model, {"x": X}), expected, atol=1e-5)


def convolution(channels: int, taps: int, groups: int) -> ir.Model:
    """A convolution of bytes, as the positional one of a CTC model."""
    rng = np.random.default_rng(0)
    # No larger, or processors without VNNI cut off sums of two products.
    levels = rng.integers(-63, 64, (groups * channels, channels, taps)).astype(np.int8)
    graph = GraphOf()
    weight = graph.weight("w", levels, [0.001] * len(levels), axis=0)
    pads = [taps // 2, taps // 2 - 1]
    x = graph.activation("x", SCALE, zero_point=69)
    graph.add("Conv", [x, weight], "y", group=groups, pads=pads)
    shape = [1, groups * channels, None]
    return graph.model({"x": [1, groups * channels, "n"]}, "y", shape)


@pytest.mark.parametrize(
    ("channels", "groups", "together"),
    [(16, 4, 2), (24, 3, 3), (12, 16, 4), (5, 4, 4), (31, 1, 1), (32, 2, 1), (1, 4, 1)],
)
def test_groups_of_few_channels_are_put_together(channels: int, groups: int, together: int) -> None:
    given = np.random.default_rng(1).normal(size=(1, groups * channels, 50)).astype(np.float32)
    model = convolution(channels, 8, groups)
    expected = run(model, {"x": given})
    assert put_groups_together(model) == (together > 1)
    remove_unused(model)
    (node,) = (node for node in model.graph if node.op_type == "Conv")
    assert node.attributes.get_int("group", 1) == groups // together
    np.testing.assert_allclose(run(model, {"x": given}), expected, atol=1e-5)
    # What is left with too few is multiplied in float.
    assert give_float_weights(model) == (1 < together * channels < 32)
    np.testing.assert_allclose(run(model, {"x": given}), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_openvino_computes_long_convolutions_of_few_channels(tmp_path: Path, groups: int) -> None:
    openvino = pytest.importorskip("openvino")
    model = convolution(24, 128, groups)
    rewritten = model.clone()
    rewrite_for_openvino(rewritten)
    ir.save(rewritten, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU")
    for length in (60, 101, 150):
        shape = (1, 24 * groups, length)
        given = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        found, expected = compiled({"x": given})[0], run(model, {"x": given})
        # On a processor with AMX the error was three times the values.
        assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()


def test_nothing_is_changed_without_a_norm_over_time() -> None:
    graph = GraphOf()
    weight = graph.weight("w", WEIGHT, WEIGHT_SCALES, axis=0)
    x = graph.add("Conv", [graph.activation("x", SCALE, zero_point=0), weight], "c")
    graph.add("Gelu", [x], "y")
    model = graph.model({"x": [2, 1, "n"]}, "y", [2, CHANNELS, None])
    before = operators(model)
    rewrite_for_openvino(model)  # uint8 around 0 is asymmetric, so its spelling stays too
    assert operators(model) == before
    types = {tensor.dtype for tensor in model.graph.initializers.values()}
    assert ir.DataType.UINT8 in types


@pytest.mark.parametrize(
    "variant",
    # One of each front end; the others are exported in minutes.
    [
        pytest.param(variant, marks=() if variant in _QUICK else pytest.mark.slow)
        for variant in VARIANTS
    ],
)
def test_every_architecture_computes_what_its_bundle_does(
    variant: str, shared: SharedArtifacts, tmp_path: Path
) -> None:
    bundle = shared.bundle(variant)
    quantized = w8a8(bundle, tmp_path / "w8a8")
    model = openvino_model(quantized.only_graph)
    count = Counter(operators(model))
    assert count["InstanceNormalization"] == (1 if variant.endswith("group") else 0)
    original = ir.load(quantized.only_graph.model_path)
    lost = Counter(operators(original))["QuantizeLinear"] - count["QuantizeLinear"]
    assert lost == 0, "every activation is still rounded"
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    feeds = feeds_of(bundle.spec, [noise])
    expected, in_float = run(original, feeds), run(ir.load(bundle.only_graph.model_path), feeds)
    difference = np.abs(run(model, feeds) - expected)
    # Sums in another order: a value that tips over a half moves a whole step here and there.
    assert difference.mean() < 0.3 * np.abs(in_float - expected).mean()
