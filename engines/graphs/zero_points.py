"""A quantized graph in the other Q/DQ format: the same integers around another zero point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import OptionError
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.graphs.writer import GraphWriter, constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

_Types = dict[np.dtype[Any], np.dtype[Any]]
_SIGNED: _Types = {np.dtype(np.uint8): np.dtype(np.int8), np.dtype(np.uint16): np.dtype(np.int16)}
_UNSIGNED: _Types = {signed: unsigned for unsigned, signed in _SIGNED.items()}


def move_zero_points(model: ir.Model, qdq_format: QdqFormat) -> None:
    """Write the activations' integers as `qdq_format` has them; every dequantized value stays.

    Bounds of fewer than 8 bits need no change: they are Clips of the float before. Raises
    OptionError for integers around another point than 0, which S8 cannot write;
    then nothing is changed.
    """
    pairs = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    renewed = {node: zero for node in pairs if (zero := _moved(node, qdq_format)) is not None}
    for node, zero_point in renewed.items():
        _set_zero_point(model, node, zero_point)


def is_asymmetric(model: ir.Model) -> bool:
    """Return whether any activation's integers are around another point than 0."""
    try:
        for node in model.graph:
            if node.op_type == "QuantizeLinear":
                _moved(node, QdqFormat.S8)
    except OptionError:
        return True
    return False


def _moved(node: ir.Node, qdq_format: QdqFormat) -> NDArray[Any] | None:
    """Return the zero point that `node` shall have, None where it may keep its own."""
    zero_point = _zero_point_of(node)
    given = zero_point.dtype
    wanted = (_SIGNED if qdq_format is QdqFormat.S8 else _UNSIGNED).get(given)
    shifted = int(zero_point)
    if wanted is not None:
        half = 1 << (8 * given.itemsize - 1)
        shifted += half if qdq_format is QdqFormat.U8 else -half
    if qdq_format is QdqFormat.S8 and shifted:
        raise OptionError(
            f"{node.name}: zero point {int(zero_point)} of {given.name} is asymmetric, and "
            "integers around 0 are wanted: quantize again with --qdq-format s8, which is symmetric"
        )
    return None if wanted is None else np.array(shifted, wanted)


def _zero_point_of(node: ir.Node) -> NDArray[Any]:
    """Return a zero point without dimensions."""
    given = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if given is None or given.size != 1:
        raise OptionError(
            f"{node.name}: has no single constant zero point, as every activation of a bundle has; "
            'make it again with "speechquant quantize"'
        )
    return given.reshape(())


def _set_zero_point(model: ir.Model, node: ir.Node, zero_point: NDArray[Any]) -> None:
    import onnx_ir as ir

    old, integers = node.inputs[2], node.outputs[0]
    value = GraphWriter(model, before=node).constant(zero_point)
    node.replace_input_with(2, value)
    integers.type = ir.TensorType(ir.DataType.from_numpy(zero_point.dtype))
    for reader, _ in integers.uses():
        if reader.op_type == "DequantizeLinear":
            reader.replace_input_with(2, value)
    if old is not None and old.name is not None and not old.uses():
        model.graph.initializers.pop(old.name, None)
