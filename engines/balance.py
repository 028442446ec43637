"""A float bundle whose channels are divided, which computes what the one it is made from does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle, load_bundle, new_bundle, require_float
from speechquant.core.onnx_files import WEIGHT_OPERATORS, require_packages
from speechquant.engines.graph_files import copy_other_files, save_graph_files
from speechquant.engines.graphs.channel_division import (
    ChannelChange,
    balance_channels,
    divisible_products,
)
from speechquant.engines.graphs.time_norms import TimeNorm, time_norm_after
from speechquant.engines.graphs.writer import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ReadConvolution:
    """A convolution along time: what it reads at once, and its weight [groups, inputs, outputs].

    Inputs are all steps of a channel, then those of the next. To its products the bias is added,
    and `norm` follows where there is one.
    """

    steps: int
    stride: int
    weight: Floats
    bias: Floats | float
    norm: TimeNorm | None


@dataclass(frozen=True, eq=False)
class ReadWeights:
    """What reads an activation: the axis of its channels, and the weights of its products.

    The weights, [inputs, outputs], are those beside which its channels can be divided; without any
    they cannot. A norm in front divides for nothing, but keeps no channel in float.
    """

    channel_axis: int
    weights: tuple[Floats, ...]
    follows_norm: bool = False
    convolution: ReadConvolution | None = None


def weights_by_activation(
    bundle: Bundle, float_layers: Collection[str] = ()
) -> dict[str, ReadWeights]:
    """Return what reads each activation that is to be quantized, by the activation's name."""
    require_packages("balancing")
    import onnx_ir as ir

    found: dict[str, ReadWeights] = {}
    for graph in bundle.graphs.values():
        model = ir.load(graph.model_path)
        divisible = divisible_products(model, graph.spec)
        readers = {
            node.inputs[0].name: node
            for node in model.graph
            if node.inputs and node.inputs[0] is not None
            and node.op_type in WEIGHT_OPERATORS
        }  # fmt: skip
        for name, layer in graph.spec.layers.items():
            if layer not in float_layers and name not in found:
                products = divisible.get(name)
                if products is None:
                    found[name] = _indivisible(readers[name])
                    continue
                follows_norm = products.norm is not None
                found[name] = ReadWeights(-1, tuple(products.weights), follows_norm)
    return found


def _indivisible(node: ir.Node) -> ReadWeights:
    if node.op_type != "Conv":
        return ReadWeights(-1, ())
    weight = constant_of(node.inputs[1])
    dilation = node.attributes.get_ints("dilations", [1])
    if weight is None or weight.ndim != 3 or list(dilation) != [1]:
        return ReadWeights(1, ())
    groups = node.attributes.get_int("group", 1)
    (stride,) = node.attributes.get_ints("strides", [1])
    outputs, steps = len(weight), weight.shape[2]
    by_group = np.asarray(weight, np.float32).reshape(groups, outputs // groups, -1)
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    read = ReadConvolution(
        steps,
        int(stride),
        by_group.transpose(0, 2, 1),
        0.0 if bias is None else np.asarray(bias, np.float32),
        time_norm_after(node),
    )
    return ReadWeights(1, (), convolution=read)


def balanced_bundle(bundle: Bundle, out: Path, changes: Mapping[str, ChannelChange]) -> Bundle:
    """Write the float bundle with its channels changed, over one that is there.

    Raises BundleError and MissingPackageError.
    """
    require_float(bundle)
    require_packages("balancing")
    import onnx_ir as ir

    graphs: dict[str, ir.Model] = {}
    for graph in bundle.graphs.values():
        model = ir.load(graph.model_path)
        balance_channels(model, graph.spec, changes)
        graphs[graph.model_path.name] = ir.external_data.load_to_model(model)
    made_from = {**bundle.made_from, "balanced_from": bundle.model_sha256}
    with new_bundle(out, bundle.spec, made_from, force=True) as folder:
        save_graph_files(graphs, folder)
        copy_other_files(bundle, folder)
    return load_bundle(out)
