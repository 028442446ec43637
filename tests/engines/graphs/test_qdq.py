from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speechquant.core.ctc import CtcDecoding, CtcSpec
from speechquant.core.errors import OptionError, ScaleError
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.engines.graphs.qdq import (
    QdqFormat,
    activation_levels,
    quantize_activations,
    quantize_weights,
    quantized_nodes,
    weight_axis,
)
from speechquant.engines.onnxruntime.session import have_exact_products

Floats = NDArray[np.float32]

RNG = np.random.default_rng(0)
BATCH, CHANNELS, FRAMES, WIDTH = 2, 4, 40, 6
CONV = RNG.standard_normal((WIDTH, CHANNELS, 3)).astype(np.float32)
LINEAR = RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32)
LAYERS = {"x": "conv.0", "t": "head"}
SCALES = {"x": 0.03, "t": 0.11}


def spec_of(layers: dict[str, str]) -> CtcSpec:
    return CtcSpec(
        architecture="Tiny", task="ctc", precision="fp32", sample_rate_hz=16_000,
        normalize_waveform=False, padding_exact=True, conv_kernels=(3,), conv_strides=(1,),
        attention_heads=1, inputs=(), outputs=(), layers=layers,
        decoding=CtcDecoding(blank=0, word_delimiter=None),
    )  # fmt: skip


def graph_of(nodes: list[onnx.NodeProto], **weights: Floats) -> ir.Model:
    """A graph from x [batch, channels, frames] to y."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, "frames"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(proto)


def tiny_graph() -> ir.Model:
    """A convolution, a transposition, a matrix product and a residual around it."""
    return graph_of(
        [
            helper.make_node("Conv", ["x", "conv"], ["c"], name="conv"),
            helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["t", "linear"], ["m"], name="linear"),
            helper.make_node("Add", ["t", "m"], ["y"], name="residual"),
        ],
        conv=CONV,
        linear=LINEAR,
    )


def table_of(
    bits: int, weight_bits: int = 8, *, zero_point: int | None = None, **changes: Any
) -> ScaleTable:
    scales = {**SCALES, **changes}
    return ScaleTable(
        "", "max", Bits(weight_bits, bits),
        {name: Scale(LAYERS[name], scales[name], 1.0, zero_point or 0) for name in LAYERS},
        symmetric=zero_point is None,
    )  # fmt: skip


def quantized(
    table: ScaleTable, qdq_format: QdqFormat = QdqFormat.U8, model: ir.Model | None = None
) -> ir.Model:
    model = model or tiny_graph()
    nodes = quantized_nodes(model, spec_of(LAYERS))
    quantize_weights(model, nodes, table.bits.weights)
    quantize_activations(model, nodes, table, qdq_format)
    return model


def run(model: ir.Model, x: Floats, *outputs: str, optimized: bool = True) -> list[Floats]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    for name in outputs:
        if name not in [output.name for output in proto.graph.output]:
            proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    have_exact_products(options)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(list(outputs) or None, {"x": x})]


def waves(scale: float = SCALES["x"]) -> Floats:
    """Noise, and beside it every half step, where rounding shows, and values far outside."""
    x = RNG.standard_normal((BATCH, CHANNELS, FRAMES)).astype(np.float32)
    halves = np.arange(-3 * FRAMES // 2, 3 * FRAMES // 2).astype(np.float32) / 2
    x[0, :3] = (halves * np.float32(scale)).reshape(3, FRAMES)
    x[1, 0, :6] = [0, -0.0, 1e9, -1e9, 3e36, -3e36]
    return x


def rounded(x: Floats, scale: float, lowest: int, highest: int, zero_point: int = 0) -> Floats:
    """The quantizer as the design writes it, in float32."""
    step = np.float32(scale)
    levels = np.clip(np.rint(x / step) + np.float32(zero_point), lowest, highest)
    return (levels - np.float32(zero_point)) * step


def rounded_weight(weight: Floats, bits: int, axis: int) -> Floats:
    result = np.empty_like(weight)
    largest = 2 ** (bits - 1) - 1
    for channel in range(weight.shape[axis]):
        where = [slice(None)] * weight.ndim
        where[axis] = slice(channel, channel + 1)
        values = weight[tuple(where)]
        result[tuple(where)] = rounded(
            values, np.abs(values).max() / np.float32(largest), -largest, largest
        )
    return result


def lowest_level(bits: int) -> int:
    # At the width of its type QuantizeLinear saturates one level lower.
    return -(2 ** (bits - 1)) + (bits not in (8, 16))


@pytest.mark.parametrize("bits", range(2, 17))
def test_dequantized_tensors_equal_numpy_to_the_last_bit(bits: int) -> None:
    x = waves()
    expected = rounded(x, SCALES["x"], lowest_level(bits), 2 ** (bits - 1) - 1)
    model = quantized(table_of(bits))
    for optimized in (False, True):
        (dequantized,) = run(model, x, "x_dequantized", optimized=optimized)
        np.testing.assert_array_equal(dequantized, expected)


@pytest.mark.parametrize("scale", [1e-30, 0.1, 1 / 3, 7.77e12])
@pytest.mark.parametrize("bits", [3, 8, 15])
def test_clipping_is_exact_at_any_scale(scale: float, bits: int) -> None:
    # The last level and its neighbours in float32: what a bound that is off by one bit would move.
    highest = 2 ** (bits - 1) - 1
    edges = np.float32([highest - 0.5, highest, highest + 0.5]) * np.float32(scale)
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(0)), 2 * edges])
    x = np.zeros((1, CHANNELS, 9), np.float32)
    x[0, 0], x[0, 1] = edges, -edges
    expected = rounded(x, scale, lowest_level(bits), highest)
    (dequantized,) = run(quantized(table_of(bits, x=scale)), x, "x_dequantized")
    np.testing.assert_array_equal(dequantized, expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_both_spellings_give_the_same_bits(bits: int) -> None:
    x, names = waves(), ("x_dequantized", "t_dequantized", "conv", "linear")
    one, other = (
        run(quantized(table_of(bits), qdq_format), x, *names, optimized=False)
        for qdq_format in QdqFormat
    )
    for name, first, second in zip(names, one, other, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)


def test_spellings_are_signed_and_unsigned() -> None:
    types = {
        qdq_format: activation_levels(8, qdq_format, symmetric=True, zero_point=0)
        for qdq_format in QdqFormat
    }
    signed, unsigned = types[QdqFormat.S8], types[QdqFormat.U8]
    assert (signed.dtype, signed.zero_point) == (np.int8, 0)
    assert (unsigned.dtype, unsigned.zero_point) == (np.uint8, 128)
    for qdq_format, levels in types.items():
        model = quantized(table_of(8), qdq_format)
        assert model.graph.initializers["x_zero_point"].dtype == ir.DataType.from_numpy(
            np.dtype(levels.dtype)
        )


@pytest.mark.parametrize("bits", [2, 4, 8, 11, 16])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_asymmetric_levels(bits: int, share: float) -> None:
    zero_point = round(share * (2**bits - 1))
    x = waves()
    (dequantized,) = run(quantized(table_of(bits, zero_point=zero_point)), x, "x_dequantized")
    np.testing.assert_array_equal(dequantized, rounded(x, SCALES["x"], 0, 2**bits - 1, zero_point))


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(
    ("weight_bits", "bits"), [(8, 8), (6, 6), (4, 4), (8, 4), (4, 12), (16, 8)]
)
def test_a_graph_equals_its_simulation_in_numpy(
    weight_bits: int, bits: int, optimized: bool
) -> None:
    x = RNG.standard_normal((BATCH, CHANNELS, FRAMES)).astype(np.float32)
    conv, linear = rounded_weight(CONV, weight_bits, 0), rounded_weight(LINEAR, weight_bits, 1)
    edges = lowest_level(bits), 2 ** (bits - 1) - 1
    seen = rounded(x, SCALES["x"], *edges).astype(np.float64)
    windows = np.stack([seen[:, :, shift : shift + FRAMES - 2] for shift in range(3)], axis=-1)
    t = np.einsum("bcfk,ock->bfo", windows, conv.astype(np.float64))
    model = quantized(table_of(bits, weight_bits))
    (heard_t,) = run(model, x, "t", optimized=optimized)
    np.testing.assert_allclose(heard_t, t, atol=2e-5)
    # From the float32 t on, because one in the last bit may be on the other side of a half.
    y = heard_t + rounded(heard_t, SCALES["t"], *edges).astype(np.float64) @ linear
    (heard_y,) = run(model, x, "y", optimized=optimized)
    np.testing.assert_allclose(heard_y, y, atol=2e-4)


def test_only_the_weighted_nodes_read_the_rounded_tensor() -> None:
    model = quantized(table_of(8))
    nodes = {node.name: node for node in model.graph}
    read = {name: [value.name for value in nodes[name].inputs if value] for name in nodes}
    assert read["conv"] == ["x_dequantized", "conv"]
    assert read["linear"] == ["t_dequantized", "linear"]
    assert read["residual"] == ["t", "m"]
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 2
    assert "Clip" not in [node.op_type for node in model.graph]
    weight = model.graph.initializers["linear_quantized"]
    assert weight.dtype == ir.DataType.INT8
    assert {"conv", "linear"}.isdisjoint(model.graph.initializers)


def test_float_layers_are_left_alone() -> None:
    model = tiny_graph()
    nodes = quantized_nodes(model, spec_of(LAYERS), float_layers=["head"])
    assert [node.name for node in nodes] == ["conv"]
    quantize_weights(model, nodes, 8)
    quantize_activations(model, nodes, table_of(8), QdqFormat.U8)
    assert model.graph.initializers["linear"].dtype == ir.DataType.FLOAT
    assert "t_scale" not in model.graph.initializers


@pytest.mark.parametrize(("bits", "opset"), [((8, 8), 20), ((16, 8), 21), ((8, 9), 21)])
def test_sixteen_bits_need_a_later_opset(bits: tuple[int, int], opset: int) -> None:
    weight_bits, activation_bits = bits
    model = quantized(table_of(activation_bits, weight_bits))
    assert model.graph.opset_imports[""] == opset


def test_a_shared_weight_is_stored_once_and_stays_float_for_others() -> None:
    shared = RNG.standard_normal((FRAMES, FRAMES)).astype(np.float32)
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "shared"], ["a"]),
            helper.make_node("Relu", ["x"], ["t"]),
            helper.make_node("MatMul", ["t", "shared"], ["b"]),
            helper.make_node("ReduceSum", ["shared"], ["s"], keepdims=0),
            helper.make_node("Sum", ["a", "b", "s"], ["y"]),
        ],
        shared=shared,
    )
    steps: list[tuple[int, int]] = []
    nodes = quantized_nodes(model, spec_of(LAYERS))
    quantize_weights(model, nodes, 8, on_step=lambda *step: steps.append(step))
    assert steps == [(1, 1)]
    assert sorted(model.graph.initializers) == [
        "shared_float", "shared_quantized", "shared_scale", "shared_zero_point",
    ]  # fmt: skip
    x = RNG.standard_normal((1, CHANNELS, FRAMES)).astype(np.float32)
    # Not optimised: without VNNI ONNX Runtime cannot widen a weight that two products read.
    heard, total = run(model, x, "shared", "s", optimized=False)
    np.testing.assert_array_equal(heard, rounded_weight(shared, 8, 1))
    np.testing.assert_allclose(total, shared.sum(dtype=np.float64), atol=1e-4)


def test_output_channels_of_each_operator() -> None:
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "conv"], ["y"], name="conv"),
            helper.make_node("MatMul", ["x", "linear"], ["a"], name="matmul"),
            helper.make_node("Gemm", ["x", "linear"], ["b"], name="gemm"),
            helper.make_node("Gemm", ["x", "linear"], ["c"], name="turned", transB=1),
        ],
        conv=CONV,
        linear=LINEAR,
    )
    axes = {node.name: weight_axis(node) for node in model.graph}
    assert axes == {"conv": 0, "matmul": 1, "gemm": 1, "turned": 0}


def test_given_levels_reach_the_graph_and_others_are_refused() -> None:
    model, levels = tiny_graph(), np.full(LINEAR.shape, 5, np.int8)
    nodes = quantized_nodes(model, spec_of(LAYERS))
    with pytest.raises(OptionError, match=r"given for head\.weight, which is no weight"):
        quantize_weights(model, nodes, 8, rounded={"head.weight": levels})
    quantize_weights(model, nodes, 8, rounded={"linear": levels})
    stored = model.graph.initializers["linear_quantized"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), levels)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (
            table_of(8, zero_point=3),
            OptionError,
            "asymmetric, and TensorRT takes only zero point 0",
        ),
        (table_of(9), OptionError, "W8A9: TensorRT has no integers of more than 8 bits"),
        (table_of(8, 16), OptionError, "W16A8: TensorRT has no integers of more than 8 bits"),
        (table_of(8, x=1e-42), ScaleError, "the scale of x is 1e-42"),
    ],
)
def test_what_tensorrt_cannot_hold_is_refused(
    table: ScaleTable, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantized(table, QdqFormat.S8)


def test_a_tensor_without_a_scale_is_named() -> None:
    model, table = tiny_graph(), ScaleTable("", "max", Bits(), {"x": Scale("conv.0", 0.1, 1.0)})
    nodes = quantized_nodes(model, spec_of(LAYERS))
    with pytest.raises(ScaleError, match="no scale for t"):
        quantize_activations(model, nodes, table, QdqFormat.U8)
