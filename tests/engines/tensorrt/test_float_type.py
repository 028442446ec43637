"""The float rest in float16 or bfloat16: which casts there are, and that the numbers are right."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from speechquant.engines.tensorrt.float_type import cast_floats

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def value(name: str, dtype: ir.DataType = FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape([2]), type=ir.TensorType(dtype))


def constant(name: str, numbers: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(numbers, name=name)
    return ir.Value(
        name=name,
        shape=ir.Shape(numbers.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )


def model(step: float = 1e-5) -> ir.Model:
    """x -> Q -> DQ -> Mul by 3 -> Add to x -> y."""
    x, y = value("x"), value("y")
    scale = constant("scale", np.array(step, np.float32))
    zero, three = constant("zero", np.array(0, np.int8)), constant("three", np.float32([3, 3]))
    quantized, floats, product = value("q", ir.DataType.INT8), value("dq"), value("product")
    nodes = [
        ir.node("QuantizeLinear", [x, scale, zero], outputs=[quantized], name="quantize"),
        ir.node("DequantizeLinear", [quantized, scale, zero], outputs=[floats], name="dequantize"),
        ir.node("Mul", [floats, three], outputs=[product], name="mul"),
        ir.node("Add", [product, x], outputs=[y], name="add"),
    ]
    graph = ir.Graph(
        [x], [y], nodes=nodes, initializers=[scale, zero, three], opset_imports={"": 20}
    )
    return ir.Model(graph, ir_version=10)


def run(graph: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    # ONNX Runtime's CPU provider computes float16 in float32; the reference does what it is told.
    with np.errstate(over="ignore"):
        (y,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})
    return np.asarray(y)


def test_products_are_narrow_and_quantization_is_not() -> None:
    graph = model()
    cast_floats(graph, HALF, ())
    types = {node.name: node.outputs[0].dtype for node in graph.graph}
    assert types["mul"] == types["add"] == HALF
    assert types["dequantize"] == FLOAT
    scales = [node.inputs[1] for node in graph.graph if node.op_type.endswith("quantizeLinear")]
    assert all(scale is not None and scale.dtype == FLOAT for scale in scales)
    assert [(output.name, output.dtype) for output in graph.graph.outputs] == [("y", FLOAT)]
    assert [(put.name, put.dtype) for put in graph.graph.inputs] == [("x", FLOAT)]


@pytest.mark.parametrize("kept", [(), ("mul", "add")])
def test_inputs_and_outputs_that_are_to_be_narrow(kept: tuple[str, ...]) -> None:
    graph = model(step=1e-2)
    cast_floats(graph, HALF, kept, {"x", "y"})
    assert [(output.name, output.dtype) for output in graph.graph.outputs] == [("y", HALF)]
    assert [(put.name, put.dtype) for put in graph.graph.inputs] == [("x", HALF)]
    types = {node.name: node.outputs[0].dtype for node in graph.graph}
    assert types["add"] == (FLOAT if kept else HALF), "what is kept computes in float32 still"
    x = np.float16([0.125, -0.375])
    # 0.125 is 12 steps of 0.01 after the half is rounded to even, -0.375 is -38 of them.
    got = run(graph, x)  # type: ignore[arg-type]
    assert got.dtype == np.float16
    assert got == pytest.approx(3 * np.array([0.12, -0.38]) + x, abs=2e-3)


def test_numbers_are_those_of_numpy_in_float16() -> None:
    graph = model()
    cast_floats(graph, HALF, ())
    x = np.float32([1.2345e-3, -4.4e-4])
    # The scale of 1e-5 is kept to float32; as float16 it would be 1.0014e-5.
    levels = np.clip(np.rint(x / np.float32(1e-5)), -128, 127) * np.float32(1e-5)
    expected = levels.astype(np.float16) * np.float16(3) + x.astype(np.float16)
    assert np.array_equal(run(graph, x), expected.astype(np.float32))


def test_a_node_that_is_kept_computes_in_float32() -> None:
    kept, spoilt = model(step=1.0), model(step=1.0)
    cast_floats(kept, HALF, ("add",))
    cast_floats(spoilt, HALF, ())
    x = np.float32([65_400, 1])
    # 65,400 saturates at 127 steps of 1; three times that and x are more than float16's 65,504.
    assert run(kept, x).tolist() == [65_400 + 381, 1 + 3]
    assert run(spoilt, x).tolist() == [np.inf, 1 + 3]


def test_a_tensor_is_cast_once_for_all_its_readers() -> None:
    graph = model()
    cast_floats(graph, HALF, ())
    casts = [node.name for node in graph.graph if node.op_type == "Cast"]
    assert sorted(filter(None, casts)) == ["dq_float16", "x_float16", "y_cast"]


def test_a_cast_of_the_graph_goes_to_the_narrow_type() -> None:
    flags = value("flags", ir.DataType.BOOL)
    y = value("y")
    graph = ir.Graph(
        [flags],
        [y],
        nodes=[ir.node("Cast", [flags], {"to": int(FLOAT)}, outputs=[y], name="to_float")],
        opset_imports={"": 20},
    )
    cast_floats(ir.Model(graph, ir_version=10), HALF, ())
    assert [node.attributes.get_int("to") for node in graph] == [int(HALF), int(FLOAT)]
    assert graph.outputs[0].name == "y"


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT16"])
def test_constants_hold_the_nearest_value(name: str) -> None:
    graph = model()
    graph.graph.initializers["three"].const_value = ir.tensor(
        np.float32([1.003, 3.0]), name="three"
    )
    cast_floats(graph, ir.DataType[name], ())
    (constant_,) = [v for k, v in graph.graph.initializers.items() if k.startswith("three_")]
    assert constant_.const_value is not None
    assert "three" not in graph.graph.initializers  # nothing reads it in float32 any more
    # 1.003 lies between 1 and 1 + 2^-7 in bfloat16, between 1 + 3/1024 and 1 + 4/1024 in float16.
    nearest = {"BFLOAT16": 1.0, "FLOAT16": 1 + 3 / 1024}[name]
    assert constant_.const_value.numpy().astype(np.float32).tolist() == [nearest, 3.0]
