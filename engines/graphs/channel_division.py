"""Channels of activations divided before their products, whose weights make up for it.

A layer norm in front of the products takes the division into its own weights. Elsewhere, as behind
GELU, it is one multiplication. With powers of two nothing that the graph computes changes by a bit.
Channels that are kept in float have a small product of their own, which is added to the large one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import BundleError
from speechquant.core.graphs import LayerMap
from speechquant.engines.graphs.writer import (
    GraphWriter,
    add_constant,
    constant_of,
    other_input,
    producer_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

Floats = NDArray[np.float32]

_MOST_OUTPUTS = 1 << 14  # a head over so many tokens is no product of a block


@dataclass(frozen=True, eq=False)
class ChannelChange:
    """What is done to an activation: each channel is divided; those of `kept` stay in float."""

    divisors: Floats
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class DividedProducts:
    """An activation and the products that read it, whose weights are [inputs, outputs]."""

    activation: ir.Value
    products: tuple[ir.Node, ...]

    @property
    def norm(self) -> ir.Node | None:
        """The layer norm that can take the division into its weights, which nothing else reads."""
        norm = producer_of(self.activation, "LayerNormalization")
        if norm is None or len(self.activation.uses()) > len(self.products):
            return None
        return norm if _is_plain(norm) else None

    @property
    def weights(self) -> list[Floats]:
        """The weights, in the order of the products."""
        return [np.asarray(constant_of(node.inputs[1]), np.float32) for node in self.products]

    @property
    def weight_names(self) -> set[str]:
        """The names of the weights."""
        names = (value.name for node in self.products if (value := node.inputs[1]) is not None)
        return {name for name in names if name is not None}


def divisible_products(model: ir.Model, spec: LayerMap) -> dict[str, DividedProducts]:
    """Return, by activation, the products of constants whose inputs' channels can be divided.

    Left out are an input of the graph and one that is an output too, weights that something else
    reads as well, and heads.
    """
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        activation = node.inputs[0] if node.op_type == "MatMul" else None
        if activation is None or activation.name is None or activation.name not in spec.layers:
            continue
        if constant_of(node.inputs[1]) is not None:
            found.setdefault(activation.name, []).append(node)
    return {
        name: DividedProducts(activation, tuple(nodes))
        for name, nodes in found.items()
        if (activation := nodes[0].inputs[0]) is not None and _can_divide(activation, nodes)
    }


def _can_divide(activation: ir.Value, products: list[ir.Node]) -> bool:
    if activation.producer() is None or activation.is_graph_output():
        return False
    for node in products:
        weight = node.inputs[1]
        values = constant_of(weight)
        if weight is None or values is None or values.ndim != 2 or len(weight.uses()) > 1:
            return False
        if values.shape[1] > _MOST_OUTPUTS:
            return False
    return True


def balance_channels(model: ir.Model, spec: LayerMap, changes: Mapping[str, ChannelChange]) -> int:
    """Change the channels of each activation of `changes` in place; return how many were.

    The activation keeps its name, by which scale tables and layer maps know it. Activations that
    the graph does not have are passed over. Raises BundleError where one cannot be changed.
    """
    divisible = divisible_products(model, spec)
    named = [name for name in changes if name in spec.layers]
    for name in named:
        if name not in divisible:
            raise BundleError(f"{name}: its channels cannot be divided in this graph")
        found, change = divisible[name], changes[name]
        if found.norm is not None and not change.kept:
            _divide_in_norm(model, found, found.norm, change.divisors)
        else:
            _divide(model, found, change)
    return len(named)


def _divide_in_norm(
    model: ir.Model, found: DividedProducts, norm: ir.Node, divisors: Floats
) -> None:
    for node, weight in zip(found.products, found.weights, strict=True):
        _replace_constant(model, node, 1, weight * divisors[:, None])
    for index in range(1, len(norm.inputs)):
        values = np.asarray(constant_of(norm.inputs[index]), np.float32)
        _replace_constant(model, norm, index, values / divisors)


def _divide(model: ir.Model, found: DividedProducts, change: ChannelChange) -> None:
    activation, kept = found.activation, list(change.kept)
    name = activation.name or ""
    activation.name = _new_name(model, f"{name}.undivided")
    factors, row_factors = 1 / change.divisors, change.divisors.copy()
    factors[kept] = row_factors[kept] = 0
    writer = GraphWriter(model, found.products[0])
    scaled = writer.add("Mul", activation, writer.constant(factors))
    scaled.name, scaled.shape, scaled.type = name, activation.shape, activation.type
    large = None
    if kept:
        large = writer.add("Gather", activation, writer.constant(np.array(kept)), axis=-1)
    for node, weight in zip(found.products, found.weights, strict=True):
        node.replace_input_with(0, scaled)
        _replace_constant(model, node, 1, weight * row_factors[:, None])
        if large is not None:
            _add_product(model, node, large, weight[kept])


def _add_product(model: ir.Model, node: ir.Node, large: ir.Value, weight: Floats) -> None:
    """Add `large @ weight` to what `node` returns, after the bias that a kernel takes with it."""
    import onnx_ir as ir

    last = node
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add":
        bias = constant_of(other_input(users[0], node.outputs[0]))
        last = node if bias is None else users[0]
    output = last.outputs[0]
    readers = list(output.uses())
    writer = GraphWriter(model, node)
    values = writer.constant(weight)
    product = ir.node("MatMul", [large, values])
    total = ir.node("Add", [output, product.outputs[0]])
    total.outputs[0].shape, total.outputs[0].type = output.shape, output.type
    model.graph.insert_after(last, [product, total])
    for user, index in readers:
        user.replace_input_with(index, total.outputs[0])


def _new_name(model: ir.Model, name: str) -> str:
    """Return a name that no tensor has; a graph may be balanced twice."""
    taken = {value.name for node in model.graph for value in node.outputs}
    while name in taken:
        name += "_"
    return name


def _is_plain(norm: ir.Node) -> bool:
    """Whether the norm's weights are constants that it alone reads, along one axis."""
    parameters = norm.inputs[1:]
    axis = norm.attributes.get_int("axis", -1)
    return axis == -1 and all(
        value is not None and constant_of(value) is not None and len(value.uses()) == 1
        for value in parameters
    )


def _replace_constant(model: ir.Model, node: ir.Node, index: int, values: Floats) -> None:
    old = node.inputs[index]
    if old is None or old.name is None:
        raise BundleError(f"{node.name}: input {index} is missing; export the model again")
    name = old.name
    del model.graph.initializers[name]
    node.replace_input_with(index, add_constant(model, name, values))
