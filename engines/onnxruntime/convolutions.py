"""Quantized convolutions as integer products over windows of their input.

ONNX Runtime has no integer convolution that returns floats, and its float one is three times slower
than its integer product. Channels last, a window is a run of bytes, so collecting windows is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from speechquant.core.weights import Levels
from speechquant.engines.graphs.writer import GraphWriter
from speechquant.engines.onnxruntime.products import (
    QuantizedActivation,
    QuantizedConstant,
    integer_product,
    quantized_constant,
)

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class _Shape:
    """A convolution over time."""

    kernel: int
    stride: int
    groups: int
    pads: tuple[int, int]
    channels: int  # of the input, in each group


def convolution_product(
    writer: GraphWriter, node: ir.Node, activation: QuantizedActivation
) -> ir.Value | None:
    """Add the product that a Conv is and return it, None where it is no convolution over time.

    `activation` is the Conv's input channels last, [batch, time, channels]; so is what is returned.
    """
    weight = quantized_constant(node.inputs[1])
    shape = None if weight is None else _shape_of(node, weight.levels)
    if weight is None or shape is None or weight.axis != 0:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    padded = _padded(writer, activation, shape)
    if shape.groups == 1:
        positions = _window_positions(writer, padded.levels, shape)
        windows = replace(padded, levels=_windows(writer, padded.levels, positions, shape))
        # [outputs, channels, taps] -> [taps x channels, outputs], the order of a window's bytes
        levels = weight.levels.transpose(2, 1, 0).reshape(-1, len(weight.levels))
        return integer_product(writer, windows, levels, weight.scales, bias)
    return _grouped_product(writer, padded, weight, shape, bias)


def _shape_of(node: ir.Node, weight: Levels) -> _Shape | None:
    attributes = node.attributes
    if weight.ndim != 3:
        return None
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    if list(attributes.get_ints("dilations", [1])) != [1]:
        return None
    before, after = attributes.get_ints("pads", [0, 0])
    return _Shape(
        kernel=weight.shape[2],
        stride=int(attributes.get_ints("strides", [1])[0]),
        groups=attributes.get_int("group", 1),
        pads=(int(before), int(after)),
        channels=weight.shape[1],
    )


def _padded(
    writer: GraphWriter, activation: QuantizedActivation, shape: _Shape
) -> QuantizedActivation:
    if not any(shape.pads):
        return activation
    before, after = shape.pads
    pads = writer.constant(np.array([0, before, 0, 0, after, 0]))
    # The zero point is the level of zero.
    levels = writer.add("Pad", activation.levels, pads, activation.zero_point)
    return replace(activation, levels=levels)


def _windows(writer: GraphWriter, levels: ir.Value, positions: ir.Value, shape: _Shape) -> ir.Value:
    """Return [batch, windows, taps x channels].

    Gathered row by row, which runs on all threads; slices joined by Concat take three times as
    long.
    """
    as_rows = writer.constant(np.array([0, 0, shape.kernel * shape.channels]))
    return writer.add("Reshape", writer.add("Gather", levels, positions, axis=1), as_rows)


def _grouped_product(
    writer: GraphWriter,
    activation: QuantizedActivation,
    weight: QuantizedConstant,
    shape: _Shape,
    bias: ir.Value | None,
) -> ir.Value:
    """Return the groups' products side by side.

    One group after the other: the windows of all of them together would be taps x the input.
    """
    by_group = writer.constant(np.array([0, 0, shape.groups, shape.channels]))
    split = writer.add("Reshape", activation.levels, by_group)
    split = writer.add("Transpose", split, perm=[2, 0, 1, 3])
    positions = _window_positions(writer, activation.levels, shape)
    outputs = []
    size = len(weight.levels) // shape.groups
    for group in range(shape.groups):
        own = writer.add("Gather", split, writer.constant(np.array(group)), axis=0)
        rows = replace(activation, levels=_windows(writer, own, positions, shape))
        channels = slice(group * size, (group + 1) * size)
        levels = weight.levels[channels].transpose(2, 1, 0).reshape(-1, size)
        outputs.append(integer_product(writer, rows, levels, weight.scales[channels]))
    joined = writer.add("Concat", *outputs, axis=2)
    return joined if bias is None else writer.add("Add", joined, bias)


def _window_positions(writer: GraphWriter, levels: ir.Value, shape: _Shape) -> ir.Value:
    """Return [windows, taps]: where the values of each window stand."""
    length = writer.add("Squeeze", writer.add("Shape", levels, start=1, end=2))
    behind_last = writer.add("Sub", length, writer.constant(np.array(shape.kernel - 1)))
    zero, stride = writer.constant(np.array(0)), writer.constant(np.array(shape.stride))
    first = writer.add("Range", zero, behind_last, stride)
    column = writer.add("Unsqueeze", first, writer.constant(np.array([1])))
    return writer.add("Add", column, writer.constant(np.arange(shape.kernel)))
