from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from small_graphs import GraphOf, operators, run

from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.onnxruntime.channels_last import put_channels_last

SCALE = 0.25


@dataclass(frozen=True)
class Case:
    kernel: int
    stride: int
    groups: int = 1
    pads: tuple[int, int] = (0, 0)
    channels: int = 4
    outputs: int = 6
    bias: bool = True


CASES = [
    Case(10, 5, channels=1),
    Case(3, 2),
    Case(2, 2, bias=False),
    Case(3, 1),
    Case(7, 3),
    Case(1, 1),
    Case(4, 1, pads=(2, 2)),
    Case(16, 1, groups=2, pads=(8, 8)),
    Case(5, 1, groups=2, pads=(1, 0), bias=False),
    Case(5, 3, groups=2),
]


def plain_convolution(
    x: NDArray[np.float64], weight: NDArray[np.float64], case: Case
) -> NDArray[np.float64]:
    """The definition, tap by tap in float64."""
    x = np.pad(x, [(0, 0), (0, 0), case.pads])
    frames = (x.shape[2] - case.kernel) // case.stride + 1
    result = np.zeros((len(x), case.outputs, frames))
    into, out = case.channels // case.groups, case.outputs // case.groups
    for output in range(case.outputs):
        group = output // out
        for frame in range(frames):
            start = frame * case.stride
            window = x[:, group * into : (group + 1) * into, start : start + case.kernel]
            result[:, output, frame] = (window * weight[output]).sum(axis=(1, 2))
    return result


def build(case: Case, weight: NDArray[np.int8], scales: list[float]) -> GraphOf:
    graph = GraphOf()
    inputs = [graph.activation("x", SCALE), graph.weight("w", weight, scales, axis=0)]
    if case.bias:
        inputs.append(graph.constant("bias", np.arange(case.outputs, dtype=np.float32)))
    graph.add(
        "Conv",
        inputs,
        "convolved",
        kernel_shape=[case.kernel],
        strides=[case.stride],
        group=case.groups,
        pads=list(case.pads),
    )
    graph.add("Neg", ["convolved"], "y")  # knows no twins: the tensor must come back in its order
    return graph


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("length", [32, 33, 34, 35, 36])
def test_a_convolution_is_a_product_of_windows(case: Case, length: int) -> None:
    rng = np.random.default_rng(length)
    shape = (case.outputs, case.channels // case.groups, case.kernel)
    levels = rng.integers(-128, 128, shape).astype(np.int8)
    scales = [2.0 ** (index % 3 - 4) for index in range(case.outputs)]
    x = rng.normal(size=(2, case.channels, length)).astype(np.float32) * 8
    graph = build(case, levels, scales)
    # The order changes by an explicit Transpose, as the exporter's layer norms do it.
    model = graph.model({"x": [2, case.channels, "t"]}, "y", [2, case.outputs, None])
    as_rows = _behind_transpose(graph, case)
    assert put_channels_last(as_rows) == 1
    remove_unused(as_rows)
    assert "Conv" not in operators(as_rows)
    rounded = np.clip(np.rint(x.astype(np.float64) / SCALE), -128, 127) * SCALE
    weight = levels * np.array(scales)[:, None, None]
    expected = plain_convolution(rounded, weight, case)
    if case.bias:
        expected += np.arange(case.outputs)[:, None]
    got = run(as_rows, {"rows": x.transpose(0, 2, 1).copy()})
    np.testing.assert_array_equal(got, -expected.astype(np.float32))
    np.testing.assert_allclose(run(model, {"x": x}), -expected, rtol=1e-5, atol=1e-3)


def _behind_transpose(graph: GraphOf, case: Case):  # type: ignore[no-untyped-def]
    behind = GraphOf()
    behind.constants = graph.constants
    behind.add("Transpose", ["rows"], "x", perm=[0, 2, 1])
    behind.nodes += graph.nodes
    return behind.model({"rows": [2, "t", case.channels]}, "y", [2, case.outputs, None])


def test_a_mean_that_drops_its_axis_reads_the_tensor_in_its_order() -> None:
    graph = GraphOf()
    graph.add("Transpose", ["rows"], "x", perm=[0, 2, 1])
    levels = np.arange(-8, 8, dtype=np.int8).reshape(2, 4, 2)
    weight = graph.weight("w", levels, [1.0] * 2, axis=0)
    graph.add("Conv", [graph.activation("x", SCALE), weight], "convolved")
    axes = graph.constant("axes", np.array([-1]))
    graph.add("ReduceMean", ["convolved", axes], "y", keepdims=0)
    model = graph.model({"rows": [1, "t", 4]}, "y", [1, 2])
    feed = {"rows": np.random.default_rng(0).normal(size=(1, 20, 4)).astype(np.float32)}
    before = run(model, feed)
    assert put_channels_last(model) == 1
    remove_unused(model)
    np.testing.assert_allclose(run(model, feed), before, rtol=1e-5)


@pytest.mark.parametrize("change", ["dilations", "auto_pad", "two dimensions"])
def test_other_convolutions_stay(change: str) -> None:
    graph = GraphOf()
    flat = change == "two dimensions"
    levels = np.ones((4, 4, 3, 1) if flat else (4, 4, 3), np.int8)
    graph.add("Transpose", ["rows"], "x", perm=[0, 2, 1])
    source = graph.activation("x", SCALE)
    if flat:
        axes = graph.constant("axes", np.array([3]))
        source = graph.add("Unsqueeze", [source, axes], "flat")
    attributes = {
        "dilations": {"dilations": [2]},
        "auto_pad": {"auto_pad": "SAME_UPPER"},
        "two dimensions": {},
    }[change]
    graph.add("Conv", [source, graph.weight("w", levels, [1.0] * 4, axis=0)], "y", **attributes)
    dims = [1, 4, None, 1] if flat else [1, 4, None]
    model = graph.model({"rows": [1, "t", 4]}, "y", dims)
    x = np.random.default_rng(0).normal(size=(1, 20, 4)).astype(np.float32)
    before = run(model, {"rows": x})
    assert put_channels_last(model) == 0
    remove_unused(model)
    assert "Conv" in operators(model)
    np.testing.assert_array_equal(run(model, {"rows": x}), before)
