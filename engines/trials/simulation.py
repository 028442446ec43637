"""A float graph whose activations are rounded to any scale table at run time.

A search tries hundreds of tables. Here they are an input of the graph, so that none of them costs
a new session, and the arithmetic is that of QuantizeLinear and DequantizeLinear to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.graphs import INPUT, OUTPUT, GraphSource
from speechquant.core.scales import ScaleTable
from speechquant.core.weights import Levels
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.graphs.embeddings import rounded_embeddings
from speechquant.engines.graphs.qdq import QdqFormat, activation_levels
from speechquant.engines.graphs.trained import trained_levels
from speechquant.engines.graphs.weights import quantize_weight
from speechquant.engines.runners import Tensors
from speechquant.engines.trials.changed_graph import ChangedGraph, load_graph, weighted_nodes

if TYPE_CHECKING:
    import onnx

_ROUNDED, _LIMITS = "speechquant.rounded", "speechquant.limits"
# Of a matrix that is multiplied by and looked up in, what is looked up where that differs.
_LOOKED_UP = ".looked_up"
_SCALE, _LOWEST, _HIGHEST = range(3)


def _rounding_branch(tensor: str, place: int) -> onnx.GraphProto:
    from onnx import TensorProto, helper

    def limit(index: int, name: str) -> list[onnx.NodeProto]:
        position = helper.make_tensor(f"{name}.index", TensorProto.INT64, [], [index])
        return [
            helper.make_node("Constant", [], [f"{name}.at"], value=position),
            helper.make_node("Gather", [_LIMITS, f"{name}.at"], [name]),
        ]

    prefix = f"{tensor}.rounded"
    names = [f"{prefix}.{part}" for part in ("scale", "lowest", "highest")]
    nodes = [node for index, name in enumerate(names) for node in limit(3 * place + index, name)]
    steps = [f"{prefix}.divided", f"{prefix}.round", f"{prefix}.clipped", f"{prefix}.then"]
    nodes += [
        helper.make_node("Div", [tensor, names[_SCALE]], [steps[0]]),
        helper.make_node("Round", [steps[0]], [steps[1]]),
        helper.make_node("Clip", [steps[1], names[_LOWEST], names[_HIGHEST]], [steps[2]]),
        helper.make_node("Mul", [steps[2], names[_SCALE]], [steps[3]]),
    ]
    output = helper.make_tensor_value_info(steps[3], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "rounded", [], [output])


def _float_branch(tensor: str) -> onnx.GraphProto:
    from onnx import TensorProto, helper

    name = f"{tensor}.rounded.else"
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph(
        [helper.make_node("Identity", [tensor], [name])], "float", [], [output]
    )


def _places(bundle: GraphSource, attention: bool, placement: str) -> dict[str, int]:
    """Return where in the inputs that hold the table each tensor has its row."""
    names = bundle.spec.activations(attention=attention, placement=placement)
    return {name: place for place, name in enumerate(names)}


def _switch(tensor: str, place: int, rounded: str) -> list[onnx.NodeProto]:
    """Return what makes `rounded` of a tensor, or leaves it as it is."""
    from onnx import TensorProto, helper

    position = helper.make_tensor(f"{tensor}.place", TensorProto.INT64, [], [place])
    return [
        helper.make_node("Constant", [], [f"{tensor}.at"], value=position),
        helper.make_node("Gather", [_ROUNDED, f"{tensor}.at"], [f"{tensor}.is_rounded"]),
        helper.make_node(
            "If",
            [f"{tensor}.is_rounded"],
            [rounded],
            then_branch=_rounding_branch(tensor, place),
            else_branch=_float_branch(tensor),
        ),
    ]


def insert_switches(
    model: onnx.ModelProto,
    bundle: GraphSource,
    *,
    attention: bool = False,
    placement: str = INPUT,
) -> onnx.ModelProto:
    """Return a copy in which every activation of the layer map can be rounded.

    At the inputs it is rounded on its way into products with weights alone, and into attention's
    own where that is asked for; at the outputs for whatever reads it.
    """
    import onnx
    from onnx import TensorProto, helper

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    places = _places(bundle, attention, placement)
    rename = _rounded_outputs if placement == OUTPUT else _rounded_inputs
    renamed = rename(changed, bundle, places)
    nodes, waiting = [], {tensor: places[name] for name, (tensor, _) in renamed.items()}
    rounded = dict(renamed.values())
    for name in [value.name for value in changed.graph.input if value.name in waiting]:
        nodes += _switch(name, waiting.pop(name), rounded[name])
    for node in changed.graph.node:
        nodes.append(node)
        for name in node.output:
            if name in waiting:
                nodes += _switch(name, waiting.pop(name), rounded[name])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.input.extend(
        [
            helper.make_tensor_value_info(_ROUNDED, TensorProto.BOOL, [len(places)]),
            helper.make_tensor_value_info(_LIMITS, TensorProto.FLOAT, [3 * len(places)]),
        ]
    )
    return changed


Renamed = dict[str, tuple[str, str]]


def _rounded_inputs(model: onnx.ModelProto, bundle: GraphSource, names: Iterable[str]) -> Renamed:
    """Let products read `NAME.rounded`; return, by name, the tensor and what it becomes."""
    for tensor, nodes in weighted_nodes(model, bundle).items():
        for node in nodes:
            node.input[0] = f"{tensor}.rounded"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.op_type == "MatMul" and name in bundle.spec.attention and name in names:
                node.input[index] = f"{name}.rounded"
    return {name: (name, f"{name}.rounded") for name in names}


def _rounded_outputs(model: onnx.ModelProto, bundle: GraphSource, names: Iterable[str]) -> Renamed:
    """Let products give `NAME.float`; return, by name, the tensor and what it becomes."""
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name in names:
                node.output[index] = f"{name}.float"
    return {name: (f"{name}.float", name) for name in names}


def _give_lookups_their_tables(
    model: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]
) -> None:
    """Have what is looked up in a tied head's matrix read a table of its own where there is one."""
    import onnx

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        name = f"{node.input[0]}{_LOOKED_UP}" if node.op_type == "Gather" else ""
        if name in weights:
            table = onnx.TensorProto()
            table.CopyFrom(stored[node.input[0]])
            table.name = node.input[0] = name
            model.graph.initializer.append(table)


class SimulatedSession(ChangedGraph):
    """A session that rounds what its table names; `use(None)` leaves the model in float."""

    def __init__(
        self,
        bundle: GraphSource,
        threads: int | None = None,
        weights: Mapping[str, NDArray[np.float32]] | None = None,
        *,
        attention: bool = False,
        placement: str = INPUT,
    ) -> None:
        model = insert_switches(
            load_graph(bundle, "a search"), bundle, attention=attention, placement=placement
        )
        _give_lookups_their_tables(model, weights or {})
        self._places = _places(bundle, attention, placement)
        super().__init__(model, bundle, threads, weights)
        self.use(None)

    def use(self, table: ScaleTable | None) -> None:
        """Round by `table` from now on; activations that it does not name stay float."""
        rounded = np.zeros(len(self._places), np.bool_)
        limits = np.ones((len(self._places), 3), np.float32)
        if table is not None:
            # A table may name tensors of the model's other graphs too.
            for name in self._places.keys() & table.tensors.keys():
                row = table.tensors[name]
                rounded[self._places[name]] = True
                levels = activation_levels(
                    table.bits.activations,
                    QdqFormat.U8,
                    symmetric=table.symmetric,
                    zero_point=row.zero_point,
                )
                limits[self._places[name]] = (row.scale, *levels.reach)
        self.limits: Tensors = {_ROUNDED: rounded, _LIMITS: limits.reshape(-1)}

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name."""
        return super().run({**feeds, **self.limits})


def rounded_weights(
    bundle: GraphSource, table: ScaleTable, levels: Mapping[str, Levels]
) -> dict[str, NDArray[np.float32]]:
    """Return the weights as a quantized bundle's graph sees them; `levels` as it takes them."""
    rounded: dict[str, NDArray[np.float32]] = {}
    given = {**trained_levels(bundle.folder, table.bits.weights), **levels}
    for weight in constant_weights(bundle, table.float_layers):
        quantized = quantize_weight(
            weight.values,
            weight.channel_axis,
            table.bits.weights,
            levels=given.get(weight.name),
            shared_scale=table.has_shared_weight_scales,
            name=weight.name,
        )
        rounded[weight.name] = quantized.dequantized
    if not table.tensors:
        return rounded
    looked_up = rounded_embeddings(bundle, table.bits.weights, table.float_layers)
    for name, values in looked_up.items():
        if name not in rounded:
            rounded[name] = values
        elif not np.array_equal(rounded[name], values):
            rounded[f"{name}{_LOOKED_UP}"] = values
    return rounded
