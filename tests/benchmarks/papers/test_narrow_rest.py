"""The emulation of float16, against NumPy's."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from speechquant.benchmarks.papers.narrow_rest import emulate_float16
from speechquant.engines.tensorrt.float_type import cast_floats

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def test_results_are_rounded_as_float16_is() -> None:
    x, y = (ir.Value(name=name, shape=ir.Shape([1000]), type=FLOAT) for name in "xy")
    product = ir.Value(name="product", shape=ir.Shape([1000]), type=FLOAT)
    factor = ir.tensor(np.float32(1.2345), name="factor")
    constant = ir.Value(name="factor", shape=ir.Shape([]), type=FLOAT, const_value=factor)
    nodes = [
        ir.node("Mul", [x, constant], outputs=[product], name="mul"),
        ir.node("Add", [product, x], outputs=[y], name="add"),
    ]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[constant], opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    cast_floats(model, ir.DataType.FLOAT16, ())
    emulate_float16(model)
    values = np.random.default_rng(0).uniform(1, 1000, 1000).astype(np.float32)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": values})
    halves = values.astype(np.float16)
    expected = halves * np.float16(1.2345) + halves
    assert np.array_equal(found, expected.astype(np.float32))
