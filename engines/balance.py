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
from speechquant.core.weights import (
    TRAINED_WEIGHTS_FILE,
    TrainedWeight,
    read_trained_weights,
    write_trained_weights,
)
from speechquant.engines.graph_files import copy_other_files, save_graph_files
from speechquant.engines.graphs.channel_division import (
    ChannelChange,
    balance_channels,
    divisible_products,
)
from speechquant.engines.graphs.time_norms import TimeNorm, time_norm_after
from speechquant.engines.graphs.trained import trained_levels
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
    they cannot. A norm in front divides for nothing, but keeps no channel in float. Beside trained
    integers channels can be kept in float, but not divided.
    """

    channel_axis: int
    weights: tuple[Floats, ...]
    follows_norm: bool = False
    is_trained: bool = False
    convolution: ReadConvolution | None = None


def weights_by_activation(
    bundle: Bundle, float_layers: Collection[str] = (), weight_bits: int = 8
) -> dict[str, ReadWeights]:
    """Return what reads each activation that is to be quantized, by the activation's name."""
    require_packages("balancing")
    import onnx_ir as ir

    found: dict[str, ReadWeights] = {}
    trained = trained_levels(bundle.folder, weight_bits).keys()
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
                found[name] = ReadWeights(
                    -1,
                    tuple(products.weights),
                    follows_norm=products.norm is not None,
                    is_trained=not trained.isdisjoint(products.weight_names),
                )
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

    The levels that weights were trained with are kept where the weights are still at them.

    Raises BundleError and MissingPackageError.
    """
    require_float(bundle)
    require_packages("balancing")
    import onnx_ir as ir

    graphs: dict[str, ir.Model] = {}
    trained = read_trained_weights(bundle.folder)
    for graph in bundle.graphs.values():
        model = ir.load(graph.model_path)
        balance_channels(model, graph.spec, changes)
        trained = _still_at_levels(trained, model)
        graphs[graph.model_path.name] = ir.external_data.load_to_model(model)
    made_from = {**bundle.made_from, "balanced_from": bundle.model_sha256}
    with new_bundle(out, bundle.spec, made_from, force=True) as folder:
        save_graph_files(graphs, folder)
        copy_other_files(bundle, folder)
        if trained:
            write_trained_weights(trained, folder / TRAINED_WEIGHTS_FILE)
    return load_bundle(out)


def _still_at_levels(
    trained: Mapping[str, TrainedWeight], model: ir.Model
) -> dict[str, TrainedWeight]:
    """Return the trained weights without those that the graph holds other values of.

    The row of a channel that stays in float is zeros.
    """
    left = dict(trained)
    for name in trained.keys() & model.graph.initializers.keys():
        values = np.asarray(constant_of(model.graph.initializers[name]), np.float32)
        weight = trained[name].without_rows(np.flatnonzero(~values.any(axis=1)))
        if np.array_equal(values, weight.values):
            left[name] = weight
        else:
            del left[name]
    return left
