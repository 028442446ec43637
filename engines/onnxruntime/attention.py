"""Attention as one operator of ONNX Runtime, which never holds the scores of all frames at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechquant.engines.graphs.writer import (
    MICROSOFT,
    GraphWriter,
    constant_of,
    producer_of,
    replace_value,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_HEADS_FIRST = (0, 2, 1, 3)
_KEYS_TRANSPOSED = (0, 2, 3, 1)


@dataclass(frozen=True, eq=False)
class _Attention:
    """What one attention is made of; queries, keys and values are [batch, frames, features].

    `score_bias` masks frames, None where all are attended to.
    """

    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    score_bias: ir.Value | None
    heads: int
    scale: float
    output: ir.Node


def fuse_attention(model: ir.Model) -> int:
    """Replace each attention without a mask, or with a bias per frame for one; return how many.

    The operator is fastest without a mask, so a masked one is there twice, and which of the two
    runs is decided by whether any frame is masked at all.
    """
    found = [
        attention
        for node in model.graph
        if node.op_type == "Softmax" and (attention := _attention_around(node)) is not None
    ]
    unmasked: dict[ir.Value, ir.Value] = {}
    for attention in found:
        writer = GraphWriter(model, before=attention.output)
        replace_value(model, attention.output.outputs[0], _fused(writer, attention, unmasked))
    if found:
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
    return len(found)


def _fused(
    writer: GraphWriter, attention: _Attention, unmasked: dict[ir.Value, ir.Value]
) -> ir.Value:
    bias = attention.score_bias
    if bias is None:
        return writer.add(
            "MultiHeadAttention",
            attention.queries,
            attention.keys,
            attention.values,
            domain=MICROSOFT,
            num_heads=attention.heads,
            scale=attention.scale,
        )
    if bias not in unmasked:
        unmasked[bias] = _is_zero(writer, bias)
    return writer.add(
        "If",
        unmasked[bias],
        then_branch=_branch(attention, is_masked=False),
        else_branch=_branch(attention, is_masked=True),
    )


def _is_zero(writer: GraphWriter, bias: ir.Value) -> ir.Value:
    largest = writer.add("ReduceMax", writer.add("Abs", bias), keepdims=0)
    return writer.add("Equal", largest, writer.constant(np.array(0, np.float32)))


def _branch(attention: _Attention, *, is_masked: bool) -> ir.Graph:
    """Return a subgraph that reads what it needs from the graph around it."""
    import onnx_ir as ir

    inputs = [attention.queries, attention.keys, attention.values]
    nodes: list[ir.Node] = []
    if is_masked:
        # The bias has to be as tall as the scores are.
        frames = ir.node("Shape", [attention.queries], {"start": 1, "end": 2})
        one = ir.node("Constant", [], {"value_ints": [1]})
        ones = one.outputs[0]
        tall = ir.node("Concat", [ones, ones, frames.outputs[0], ones], {"axis": 0})
        bias = ir.node("Expand", [attention.score_bias, tall.outputs[0]])
        nodes += [frames, one, tall, bias]
        inputs += [None, None, bias.outputs[0]]  # type: ignore[list-item]
    settings = {"num_heads": attention.heads, "scale": attention.scale}
    node = ir.node("MultiHeadAttention", inputs, settings, domain=MICROSOFT)
    # Names must differ from those of the graph around and of the other branch.
    name = f"{attention.output.outputs[0].name}.{'masked' if is_masked else 'whole'}"
    for index, each in enumerate([*nodes, node]):
        each.outputs[0].name = f"{name}.{index}"
    return ir.Graph([], [node.outputs[0]], nodes=[*nodes, node], name=name)


def _attention_around(softmax: ir.Node) -> _Attention | None:
    """Return the attention whose softmax this is, None where it is spelled in another way."""
    scores = _scores_of(softmax)
    weighted = _only_user(softmax, "MatMul")
    merged = None if weighted is None else _only_user(weighted, "Transpose", _HEADS_FIRST)
    output = None if merged is None else _only_user(merged, "Reshape")
    if scores is None or weighted is None or output is None:
        return None
    queries = _before_split(scores.product.inputs[0], _HEADS_FIRST)
    keys = _before_split(scores.product.inputs[1], _KEYS_TRANSPOSED)
    values = _before_split(weighted.inputs[1], _HEADS_FIRST)
    if queries is None or keys is None or values is None:
        return None
    return _Attention(
        queries=queries[0],
        keys=keys[0],
        values=values[0],
        score_bias=scores.bias,
        heads=queries[1],
        scale=scores.scale,
        output=output,
    )


@dataclass(frozen=True, eq=False)
class _Scores:
    """The product of queries and keys, and what is done to it before the softmax."""

    product: ir.Node
    scale: float
    bias: ir.Value | None


def _scores_of(softmax: ir.Node) -> _Scores | None:
    plain = producer_of(softmax.inputs[0], "MatMul")
    if plain is not None:  # Whisper scales its queries instead
        return _Scores(plain, 1.0, None)
    biased = producer_of(softmax.inputs[0], "Add")
    scaled = None if biased is None else producer_of(biased.inputs[0], "Mul")
    product = None if scaled is None else producer_of(scaled.inputs[0], "MatMul")
    if biased is None or scaled is None or product is None:
        return None
    scale, bias = constant_of(scaled.inputs[1]), biased.inputs[1]
    if scale is None or scale.size != 1 or bias is None or not _is_bias_per_frame(bias):
        return None
    return _Scores(product, float(scale.reshape(())), bias)


def _is_bias_per_frame(bias: ir.Value) -> bool:
    shape = bias.shape
    return shape is not None and len(shape) == 4 and shape[1] == 1 and shape[2] == 1


def _only_user(node: ir.Node, operator: str, perm: tuple[int, ...] = ()) -> ir.Node | None:
    users = node.outputs[0].uses()
    user = next(iter(users)).node if len(users) == 1 else None
    if user is None or user.op_type != operator:
        return None
    return user if tuple(user.attributes.get_ints("perm", ())) == perm else None


def _before_split(value: ir.Value | None, perm: tuple[int, ...]) -> tuple[ir.Value, int] | None:
    """Return what is split into heads, [batch, frames, features], and into how many."""
    transpose = producer_of(value, "Transpose")
    if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != perm:
        return None
    split = transpose.inputs[0]
    reshape = producer_of(split, "Reshape")
    heads = None if split is None or split.shape is None else split.shape[2]
    source = None if reshape is None else reshape.inputs[0]
    return (source, heads) if source is not None and isinstance(heads, int) else None
