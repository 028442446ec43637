from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speechquant.core.errors import BundleError
from speechquant.core.specs import GraphSpec
from speechquant.engines.graphs.channel_division import (
    ChannelChange,
    balance_channels,
    divisible_products,
)

SIZE, WIDE = 8, 16
RNG = np.random.default_rng(0)
CONSTANTS = {
    "norm.weight": RNG.normal(size=SIZE).astype(np.float32),
    "norm.bias": RNG.normal(size=SIZE).astype(np.float32),
    "fc1.weight": RNG.normal(size=(SIZE, WIDE)).astype(np.float32),
    "fc1.bias": RNG.normal(size=WIDE).astype(np.float32),
    "fc2.weight": RNG.normal(size=(WIDE, SIZE)).astype(np.float32),
    "fc2.bias": RNG.normal(size=SIZE).astype(np.float32),
}
NORMED, ACTIVATED, GIVEN = "fc1.input", "fc2.input", "hidden"
SPEC = GraphSpec(
    inputs=(),
    outputs=(),
    layers={NORMED: "block", ACTIVATED: "block", GIVEN: "first"},
    attention={},
)
POWERS = np.exp2(RNG.integers(0, 6, WIDE)).astype(np.float32)


def feed_forward() -> ir.Model:
    """norm -> fc1 -> Relu -> fc2 -> residual, as in a transformer's block."""
    nodes = [
        helper.make_node("LayerNormalization", [GIVEN, "norm.weight", "norm.bias"], [NORMED]),
        helper.make_node("MatMul", [NORMED, "fc1.weight"], ["fc1"]),
        helper.make_node("Add", ["fc1", "fc1.bias"], ["fc1.sum"]),
        helper.make_node("Relu", ["fc1.sum"], [ACTIVATED]),
        helper.make_node("MatMul", [ACTIVATED, "fc2.weight"], ["fc2"]),
        helper.make_node("Add", ["fc2", "fc2.bias"], ["fc2.sum"]),
        helper.make_node("Add", [GIVEN, "fc2.sum"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info(GIVEN, TensorProto.FLOAT, [1, "time", SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, "time", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def outputs(model: ir.Model, *names: str) -> list[NDArray[np.float32]]:
    proto = ir.to_proto(model)
    for name in names:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = np.random.default_rng(1).normal(size=(1, 5, SIZE)).astype(np.float32)
    return [np.asarray(found) for found in session.run(None, {GIVEN: given})]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("name", [NORMED, ACTIVATED])
def test_dividing_channels_changes_no_bit_of_the_output(name: str) -> None:
    divisors = POWERS[: SIZE if name == NORMED else WIDE]
    model = feed_forward()
    assert balance_channels(model, SPEC, {name: ChannelChange(divisors)}) == 1
    before, activation = outputs(feed_forward(), name)
    after, divided = outputs(model, name)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(divided, activation / divisors)


def test_a_norm_takes_the_division_into_its_weights() -> None:
    model = feed_forward()
    balance_channels(model, SPEC, {NORMED: ChannelChange(POWERS[:SIZE])})
    assert operators(model) == operators(feed_forward())


def test_elsewhere_it_is_one_multiplication() -> None:
    model = feed_forward()
    balance_channels(model, SPEC, {ACTIVATED: ChannelChange(POWERS)})
    assert sorted(operators(model)) == sorted([*operators(feed_forward()), "Mul"])


def test_channels_kept_in_float_are_zero_in_the_large_product_and_have_their_own() -> None:
    model = feed_forward()
    balance_channels(model, SPEC, {ACTIVATED: ChannelChange(POWERS, (2, 5))})
    before, activation = outputs(feed_forward(), ACTIVATED)
    after, left = outputs(model, ACTIVATED)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert not left[..., [2, 5]].any()
    np.testing.assert_array_equal(left[..., 3], activation[..., 3] / POWERS[3])


def test_the_bias_stays_next_to_the_large_product() -> None:
    model = feed_forward()
    balance_channels(model, SPEC, {ACTIVATED: ChannelChange(POWERS, (2,))})
    (product,) = (
        node for node in model.graph if node.inputs[0] and node.inputs[0].name == ACTIVATED
    )
    (use,) = product.outputs[0].uses()
    assert use.node.inputs[1] is not None
    assert use.node.inputs[1].name == "fc2.bias"


def test_inputs_shared_weights_and_heads_are_left_out() -> None:
    assert set(divisible_products(feed_forward(), SPEC)) == {NORMED, ACTIVATED}
    shared = feed_forward()
    weight = shared.graph.initializers["fc2.weight"]
    shared.graph.append(ir.node("Identity", [weight]))
    assert set(divisible_products(shared, SPEC)) == {NORMED}


def test_an_activation_that_cannot_be_divided_is_named() -> None:
    with pytest.raises(BundleError, match="hidden: its channels cannot"):
        balance_channels(feed_forward(), SPEC, {GIVEN: ChannelChange(POWERS[:SIZE])})


def test_activations_of_another_graph_are_passed_over() -> None:
    assert balance_channels(feed_forward(), SPEC, {"of.another": ChannelChange(POWERS)}) == 0
