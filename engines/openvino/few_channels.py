"""Integer convolutions of few channels, which OpenVINO's kernels for AMX get wrong.

With OpenVINO 2026.4 a convolution of bytes with a zero point and 2 to 31 channels in a group may be
off by more than its own values. It depends on the number of taps, on the padding and on the length.
With 32 channels and more none was, nor any without a zero point. So groups are put together until
they have as many, with weights of zero between them: on every processor, since that changes no
value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechquant.engines.graphs.writer import constant_of
from speechquant.engines.openvino.conv_weights import levels_behind, replace_weight, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

FEWEST_CHANNELS = 32


def has_few_channels(node: ir.Node) -> bool:
    """Whether OpenVINO may get an integer convolution over time wrong.

    One channel has other kernels, which are right.
    """
    levels = constant_of(weight_of(node)) if levels_behind(node) is not None else None
    return levels is not None and levels.ndim == 3 and 1 < int(levels.shape[1]) < FEWEST_CHANNELS


def put_groups_together(model: ir.Model) -> int:
    """Give integer convolutions of few channels fewer and wider groups; return how many."""
    found = [node for node in model.graph if node.op_type == "Conv" and has_few_channels(node)]
    return sum(_put_together(model, node) for node in found)


def _put_together(model: ir.Model, node: ir.Node) -> bool:
    import onnx_ir as ir

    levels, groups = constant_of(weight_of(node)), node.attributes.get_int("group", 1)
    if levels is None or groups == 1:
        return False
    divisors = [count for count in range(2, groups + 1) if groups % count == 0]
    wide = [count for count in divisors if count * levels.shape[1] >= FEWEST_CHANNELS]
    together = wide[0] if wide else groups
    replace_weight(model, node, _side_by_side(levels, groups, together))
    node.attributes["group"] = ir.AttrInt64("group", groups // together)
    return True


def _side_by_side(levels: NDArray[np.int8], groups: int, together: int) -> NDArray[np.int8]:
    """Return levels [outputs, channels, taps] that read so many groups, all but their own as 0."""
    outputs, channels, taps = levels.shape
    own = levels.reshape(groups // together, together, -1, channels, taps)
    wide = np.zeros((*own.shape[:3], together, channels, taps), levels.dtype)
    for place in range(together):
        wide[:, place, :, place] = own[:, place]
    return wide.reshape(outputs, together * channels, taps)
