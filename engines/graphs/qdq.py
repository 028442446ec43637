"""Q/DQ nodes: what makes a float graph an integer one, for whatever backend reads it.

Every pass changes the onnx_ir model it is given, which its caller owns.

A backend takes an integer in its own width only, so b bits are kept in 8 or 16. Of 8 and of 16 bits
the lowest level is -2^(b-1), one beyond the quantizer's -Q, because that is where QuantizeLinear
saturates; other bits are clipped to -Q..Q.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from speechquant.core.errors import BundleError, OptionError, ScaleError
from speechquant.core.graphs import LayerMap
from speechquant.core.onnx_files import WEIGHT_OPERATORS
from speechquant.core.progress import OnStep
from speechquant.core.scales import Scale, ScaleTable, largest_level
from speechquant.core.weights import Rounding
from speechquant.engines.graphs.weights import QuantizedWeight, quantize_weight
from speechquant.engines.graphs.writer import add_constant

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET_OF_16_BITS = 21
_IR_VERSION_OF_16_BITS = 10
_FLOAT32 = np.finfo(np.float32)


class QdqFormat(Enum):
    """How activations' integers are written: unsigned around 128, or signed around 0."""

    U8 = "u8"  # ONNX Runtime's fast kernels on x86 take unsigned by signed
    S8 = "s8"  # TensorRT takes no other zero point than 0


@dataclass(frozen=True)
class ActivationLevels:
    """The integers of one activation; `lowest` and `highest` are as stored, zero point included."""

    dtype: type[np.signedinteger[Any]] | type[np.unsignedinteger[Any]]
    zero_point: int
    lowest: int
    highest: int

    @property
    def is_saturated(self) -> bool:
        """Whether the type's own range ends where the levels do, give or take -Q against -Q - 1."""
        info = np.iinfo(self.dtype)
        return self.highest == info.max and self.lowest <= info.min + 1

    @property
    def reach(self) -> tuple[int, int]:
        """The lowest and highest multiple of the scale that come out of the graph."""
        lowest = np.iinfo(self.dtype).min if self.is_saturated else self.lowest
        return lowest - self.zero_point, self.highest - self.zero_point


def activation_levels(
    bits: int, qdq_format: QdqFormat, *, symmetric: bool, zero_point: int
) -> ActivationLevels:
    """Return the levels of an activation; `zero_point` is used where it is not symmetric."""
    width = 8 if bits <= 8 else 16
    unsigned = np.uint8 if width == 8 else np.uint16
    if not symmetric:
        return ActivationLevels(unsigned, zero_point, 0, 2**bits - 1)
    largest = largest_level(bits)
    if qdq_format is QdqFormat.S8:
        return ActivationLevels(np.int8 if width == 8 else np.int16, 0, -largest, largest)
    middle = 2 ** (width - 1)
    return ActivationLevels(unsigned, middle, middle - largest, middle + largest)


def refuse_unfit_format(table: ScaleTable, qdq_format: QdqFormat) -> None:
    """Raise OptionError where `qdq_format` has no such integers, ScaleError for wrong scales."""
    if qdq_format is QdqFormat.S8 and not table.symmetric:
        raise OptionError(
            "the scale table is asymmetric, and TensorRT takes only zero point 0; calibrate "
            "symmetrically or use the Q/DQ format u8"
        )
    if qdq_format is QdqFormat.S8 and max(table.bits.weights, table.bits.activations) > 8:
        raise OptionError(
            f"{table.bits.name}: TensorRT has no integers of more than 8 bits; give fewer or use "
            "the Q/DQ format u8"
        )
    smallest, largest = (float(end) for end in (_FLOAT32.tiny, _FLOAT32.max))
    for name, row in table.tensors.items():
        if not smallest <= row.scale <= largest:
            raise ScaleError(
                f"the scale of {name} is {row.scale}, which a graph in float32 cannot hold; "
                "calibrate on data that reaches this tensor"
            )


def quantized_nodes(
    model: ir.Model, spec: LayerMap, float_layers: Collection[str] = ()
) -> list[ir.Node]:
    """Return, in the graph's order, the nodes with constant weights outside the float layers.

    To be asked before `quantize_weights`, which leaves them no constant weights.
    """
    return [
        node
        for node in model.graph
        if node.op_type in WEIGHT_OPERATORS
        and _input(node, 1).is_initializer()
        and spec.layers.get(_input(node, 0).name or "") not in (None, *float_layers)
    ]


def weight_axis(node: ir.Node) -> int:
    """Return the axis of a node's weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and node.attributes.get_int("transB"):
        return 0
    return len(_input(node, 1).shape or ()) - 1


def weight_names(nodes: Sequence[ir.Node]) -> list[str]:
    """Return the names of the nodes' weights, each once."""
    return list(_readers(nodes, index=1))


def quantize_weights(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    bits: int,
    *,
    rounded: Mapping[str, Rounding] | None = None,
    shared_scale: bool = False,
    on_step: OnStep | None = None,
) -> None:
    """Put integers and a DequantizeLinear in the place of each weight of `nodes`.

    The DequantizeLinear's output bears the weight's name. A weight that other nodes read too stays
    for them as `<weight>_float`. `rounded` holds the levels, by weight, that are not to be rounded
    to nearest. Raises BundleError and OptionError as `quantize_weight` does, which explains
    `shared_scale` too.
    """
    names = weight_names(nodes)
    unknown = [name for name in rounded or {} if name not in names]
    if unknown:
        raise OptionError(
            f"rounded weights were given for {unknown[0]}, which is no weight that is quantized; "
            "leave it out"
        )
    for done, users in enumerate(_readers(nodes, index=1).values(), start=1):
        weight = _input(users[0], 1)
        quantized = quantized_weight(users[0], bits, rounded, shared_scale=shared_scale)
        _replace_weight(model, users, weight, quantized)
        if on_step is not None:
            on_step(done, len(names))
    _require_opset(model, bits)


def quantized_weight(
    node: ir.Node,
    bits: int,
    rounded: Mapping[str, Rounding] | None = None,
    *,
    shared_scale: bool = False,
) -> QuantizedWeight:
    """Return the weight of `node` as integers; raises BundleError and OptionError."""
    weight = _input(node, 1)
    name = weight.name or ""
    if weight.const_value is None:
        raise BundleError(f"{name}: the graph holds no values for it; export the model again")
    levels = (rounded or {}).get(name)
    values = weight.const_value.numpy()
    return quantize_weight(
        values, weight_axis(node), bits, levels=levels, shared_scale=shared_scale, name=name
    )


def _replace_weight(
    model: ir.Model, users: Sequence[ir.Node], weight: ir.Value, quantized: QuantizedWeight
) -> None:
    import onnx_ir as ir

    name = weight.name or ""
    zeros = np.zeros(quantized.scales.shape, quantized.levels.dtype)
    inputs = [
        add_constant(model, f"{name}_quantized", quantized.levels),
        add_constant(model, f"{name}_scale", quantized.scales),
        add_constant(model, f"{name}_zero_point", zeros),
    ]
    del model.graph.initializers[name]
    output = ir.Value(name=name, shape=weight.shape, type=weight.type)
    attributes = {"axis": quantized.axis}
    node = ir.node("DequantizeLinear", inputs, attributes, outputs=[output], name=f"{name}_dq")
    model.graph.insert_before(users[0], node)
    _redirect(users, 1, output)
    if weight.uses():
        weight.name = f"{name}_float"
        model.graph.register_initializer(weight)


def quantize_activations(
    model: ir.Model, nodes: Sequence[ir.Node], table: ScaleTable, qdq_format: QdqFormat
) -> None:
    """Let each of `nodes` read its activation through QuantizeLinear and DequantizeLinear.

    Other readers of the tensor, such as a residual's Add, keep the float. Raises what
    `refuse_unfit_format` raises, and ScaleError for a tensor that the table does not name.
    """
    refuse_unfit_format(table, qdq_format)
    _quantize_inputs(model, nodes, 0, table, qdq_format)


def quantize_attention(
    model: ir.Model, spec: LayerMap, table: ScaleTable, qdq_format: QdqFormat
) -> None:
    """Let attention's own products read both inputs through Q/DQ where `table` names them.

    Raises what `quantize_activations` raises.
    """
    named = spec.attention.keys() & table.tensors.keys()
    products = [
        node
        for node in model.graph
        if node.op_type == "MatMul" and any(value and value.name in named for value in node.inputs)
    ]
    refuse_unfit_format(table, qdq_format)
    for index in range(2):
        _quantize_inputs(model, products, index, table, qdq_format)


def quantize_outputs(
    model: ir.Model, spec: LayerMap, table: ScaleTable, qdq_format: QdqFormat
) -> None:
    """Let all that reads a tensor of `table` read it through Q/DQ: what products with weights give.

    The DequantizeLinear's output bears the tensor's name, what is quantized is `NAME_float`. Raises
    what `quantize_activations` raises.
    """
    refuse_unfit_format(table, qdq_format)
    given = {value.name: value for node in model.graph for value in node.outputs}
    for name, layer in spec.layer_outputs.items():
        if layer in table.layers_read_in_float:
            continue
        tensor, users = given[name], list(given[name].uses())
        pair = _pair_of(model, tensor, table, qdq_format)
        producer, rounded = tensor.producer(), pair[-1].outputs[0]
        if producer is None:
            raise BundleError(f"{name}: nothing gives it; export the model again")
        model.graph.insert_after(producer, pair)
        for use in users:
            use.node.replace_input_with(use.idx, rounded)
        tensor.name, rounded.name = f"{name}_float", name
        outputs = model.graph.outputs
        outputs[:] = [rounded if value is tensor else value for value in outputs]
    _require_opset(model, table.bits.activations)


def _quantize_inputs(
    model: ir.Model, nodes: Sequence[ir.Node], index: int, table: ScaleTable, qdq_format: QdqFormat
) -> None:
    for users in _readers(nodes, index).values():
        pair = _pair_of(model, _input(users[0], index), table, qdq_format)
        model.graph.insert_before(users[0], pair)
        _redirect(users, index, pair[-1].outputs[0])
    _require_opset(model, table.bits.activations)


def _pair_of(
    model: ir.Model, tensor: ir.Value, table: ScaleTable, qdq_format: QdqFormat
) -> list[ir.Node]:
    """Return the nodes that round a tensor as its row says; raises ScaleError for want of one."""
    row = table.tensors.get(tensor.name or "")
    if row is None:
        raise ScaleError(f'no scale for {tensor.name}; make the table with "speechquant calibrate"')
    levels = activation_levels(
        table.bits.activations, qdq_format, symmetric=table.symmetric, zero_point=row.zero_point
    )
    return _pair_nodes(model, tensor, row, levels)


def _pair_nodes(
    model: ir.Model, tensor: ir.Value, row: Scale, levels: ActivationLevels
) -> list[ir.Node]:
    import onnx_ir as ir

    name, scale = tensor.name or "", np.float32(row.scale)
    zero_point = np.array(levels.zero_point, levels.dtype)
    pair = [
        add_constant(model, f"{name}_scale", np.array(scale)),
        add_constant(model, f"{name}_zero_point", zero_point),
    ]
    nodes: list[ir.Node] = []
    source = tensor
    if not levels.is_saturated:
        # Of the float: ONNX Runtime clips no 16-bit integers and TensorRT none at all. A bound is a
        # level times the scale, and dividing it by the scale again rounds to that level.
        bounds = [
            add_constant(
                model, f"{name}_{end}", np.array(np.float32(level - levels.zero_point) * scale)
            )
            for end, level in (("lowest", levels.lowest), ("highest", levels.highest))
        ]
        nodes.append(_node("Clip", [source, *bounds], f"{name}_clipped", tensor.type, tensor))
        source = nodes[-1].outputs[0]
    integers = ir.TensorType(ir.DataType.from_numpy(zero_point.dtype))
    nodes.append(_node("QuantizeLinear", [source, *pair], f"{name}_quantized", integers, tensor))
    source = nodes[-1].outputs[0]
    nodes.append(
        _node("DequantizeLinear", [source, *pair], f"{name}_dequantized", tensor.type, tensor)
    )
    return nodes


def _node(
    operator: str,
    inputs: Sequence[ir.Value],
    output: str,
    output_type: ir.TypeProtocol | None,
    like: ir.Value,
) -> ir.Node:
    import onnx_ir as ir

    value = ir.Value(name=output, shape=like.shape, type=output_type)
    return ir.node(operator, inputs, outputs=[value], name=output)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise BundleError(f"{node.name}: input {index} is missing; export the model again")
    return value


def _readers(nodes: Sequence[ir.Node], index: int) -> dict[str, list[ir.Node]]:
    readers: dict[str, list[ir.Node]] = {}
    for node in nodes:
        readers.setdefault(_input(node, index).name or "", []).append(node)
    return readers


def _redirect(users: Sequence[ir.Node], index: int, value: ir.Value) -> None:
    for node in users:
        node.replace_input_with(index, value)


def _require_opset(model: ir.Model, bits: int) -> None:
    """Declare the opset in which integers of 16 bits may be quantized.

    Of the operators that the exporter writes none means anything else there.
    """
    if bits > 8:
        opsets = model.graph.opset_imports
        opsets[""] = max(opsets.get("", 0), OPSET_OF_16_BITS)
        model.ir_version = max(model.ir_version, _IR_VERSION_OF_16_BITS)
