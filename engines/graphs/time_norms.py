"""A norm over time behind a convolution, which the exporter spells out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.engines.graphs.writer import constant_of, other_input, producer_of

if TYPE_CHECKING:
    import onnx_ir as ir

_TIME_AXIS = 2


@dataclass(frozen=True, eq=False)
class TimeNorm:
    """A norm of each channel: what it reads, what it learnt, and its last node."""

    source: ir.Value
    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    epsilon: float
    end: ir.Node


def time_norm_after(node: ir.Node) -> TimeNorm | None:
    """Return the norm of a convolution's output, None where there is none.

    It is source * scale + (offset - mean * scale), scale = gain / sqrt(variance + epsilon).
    """
    source = node.outputs[0]
    readers = list(dict.fromkeys(reader for reader, _ in source.uses()))
    means = [reader for reader in readers if _is_mean_over_time(reader)]
    squares = [
        reader for reader in readers if reader.op_type == "Mul" and set(reader.inputs) == {source}
    ]
    rest = [reader for reader in readers if reader not in (*means, *squares)]
    if not means or not squares or [reader.op_type for reader in rest] != ["Mul"]:
        return None
    ends = [reader for reader, _ in rest[0].outputs[0].uses()]
    if [reader.op_type for reader in ends] != ["Add"]:
        return None
    return _learnt(
        source, other_input(rest[0], source), other_input(ends[0], rest[0].outputs[0]), ends[0]
    )


def _learnt(
    source: ir.Value, scale: ir.Value | None, shift: ir.Value | None, end: ir.Node
) -> TimeNorm | None:
    gain, inverse = _constant_and_node(scale, "Mul")
    offset, _ = _constant_and_node(shift, "Sub")
    deviation = producer_of(_first_input(inverse, "Reciprocal"), "Sqrt")
    epsilon, variance = _constant_and_node(_first_input(deviation, "Sqrt"), "Add")
    if gain is None or offset is None or epsilon is None or variance is None:
        return None
    gain, offset = gain.reshape(-1), offset.reshape(-1)
    return TimeNorm(source, gain, offset, float(epsilon.item()), end)


def _is_mean_over_time(node: ir.Node) -> bool:
    axes = constant_of(node.inputs[1]) if node.op_type == "ReduceMean" else None
    return axes is not None and axes.tolist() in ([_TIME_AXIS], [-1])


def _first_input(node: ir.Node | None, operator: str) -> ir.Value | None:
    return None if node is None or node.op_type != operator else node.inputs[0]


def _constant_and_node(
    value: ir.Value | None, operator: str
) -> tuple[NDArray[Any] | None, ir.Node | None]:
    """Return the constant that `operator` reads to make `value`, and what makes its other input."""
    node = producer_of(value, operator)
    if node is None:
        return None, None
    constants = [found for given in node.inputs if (found := constant_of(given)) is not None]
    others = [given.producer() for given in node.inputs if given and given.producer()]
    return (constants[0] if constants else None), (others[0] if others else None)
