"""What stays in float32: what overflows on a noise, and statistics over time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantized import table_from_noise

from speechquant.core.bundles import Bundle
from speechquant.engines import open_session
from speechquant.engines.ctc.feeds import trial_feeds
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.tensorrt.ranges import float32_nodes, largest_magnitudes

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def chain(*operators: str) -> ir.Model:
    """Nodes named after their operators, one after the other; Mul squares."""
    source = ir.Value(name="x", shape=ir.Shape([4]), type=FLOAT)
    nodes, last = [], source
    for operator in operators:
        output = ir.Value(name=f"{operator}_out", shape=ir.Shape([4]), type=FLOAT)
        inputs = [last, last] if operator in ("Mul", "Add") else [last]
        nodes.append(ir.node(operator, inputs, outputs=[output], name=operator))
        last = output
    return ir.Model(ir.Graph([source], [last], nodes=nodes), ir_version=10)


def test_what_is_large_stays_and_so_does_what_reads_it() -> None:
    model = chain("Neg", "Abs", "Relu", "Tanh")
    largest = {"Neg_out": 16_376.0, "Abs_out": 16_377.0, "Relu_out": 3.0, "Tanh_out": 1.0}
    # A quarter of float16's largest, 65504, is 16376.
    assert float32_nodes(model, largest) == ("Abs", "Relu")


def test_statistics_stay_with_the_squares_before_and_the_scaling_after() -> None:
    model = chain("Erf", "Mul", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Sub", "Gelu", "Neg")
    assert float32_nodes(model, {}) == ("Mul", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Sub")


def test_nothing_else_stays() -> None:
    assert float32_nodes(chain("Add", "Softmax", "MatMul", "Mul", "Gelu"), {"x": 1000.0}) == ()


def test_magnitudes_are_those_of_the_graph(tiny_bundle: Bundle) -> None:
    largest = largest_magnitudes(tiny_bundle.only_graph, trial_feeds(tiny_bundle.spec))
    noise = np.random.default_rng(0).standard_normal((2, 32_000)).astype(np.float32)
    noise[1, 16_000:] = 0
    rows = [noise[0], noise[1, :16_000]]
    for row in rows:
        row -= row.mean()
        row /= row.std()
    feeds = {"input_values": noise, "input_lengths": np.array([32_000, 16_000], np.int64)}
    with open_session(tiny_bundle, threads=1) as session:
        logits = session.run(feeds)["logits"]
    assert largest["logits"] == pytest.approx(np.abs(logits).max(), rel=1e-3)
    # The mask of the padding: -10,000 is added to the scores of its frames.
    assert max(largest.values()) == pytest.approx(10_000, abs=100)


def test_calibrated_ranges_count_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    table = table_from_noise(tiny_bundle)
    rows = {**table.tensors, "head.input": replace(table.tensors["head.input"], amax=20_000.0)}
    bundle = quantize_bundle(tiny_bundle, tmp_path / "out", replace(table, tensors=rows))
    largest = largest_magnitudes(bundle.only_graph, trial_feeds(bundle.spec))
    assert largest["head.input"] == 20_000.0
    model = ir.load(bundle.only_graph.model_path)
    maker = next(node for node in model.graph if node.outputs[0].name == "head.input")
    assert maker.name in float32_nodes(model, largest)
