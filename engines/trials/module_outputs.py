"""Where in a graph a module's output is, found by the name of its weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import WEIGHT_OPERATORS
from speechquant.engines.trials.changed_graph import load_graph

if TYPE_CHECKING:
    import onnx

_WEIGHT = ".weight"


@dataclass(frozen=True)
class AttentionTensors:
    """The tensors of one attention, each [batch, heads, positions, ...].

    `mixed` is the product of the probabilities and the values.
    """

    probabilities: str
    values: str
    mixed: str


@dataclass(frozen=True)
class ModuleTensors:
    """Tensors by module: what it gives, and the attention whose output it projects, if any.

    Those of `convolutions` give [batch, dimensions, time], all others [batch, ..., dimensions].
    """

    outputs: dict[str, str]
    attentions: dict[str, AttentionTensors]
    convolutions: frozenset[str]

    @property
    def names(self) -> list[str]:
        """All tensors."""
        rows = self.attentions.values()
        parts = [part for row in rows for part in (row.probabilities, row.values, row.mixed)]
        return [*self.outputs.values(), *parts]


def module_tensors(graph: GraphSource) -> ModuleTensors:
    """Return where the outputs of a float graph's products with weights are."""
    model = load_graph(graph, "outliers")
    weights = {tensor.name for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    outputs, attentions, convolutions = {}, {}, set()
    for module, node in _weighted(model, weights):
        outputs[module] = _with_bias(node, users, weights)
        attention = _attention_before(node, producers)
        if attention is not None:
            attentions[module] = attention
        if node.op_type == "Conv":
            convolutions.add(module)
    return ModuleTensors(outputs, attentions, frozenset(convolutions))


def _weighted(model: onnx.ModelProto, weights: set[str]) -> Iterator[tuple[str, onnx.NodeProto]]:
    for node in model.graph.node:
        if node.op_type in WEIGHT_OPERATORS and node.input[1] in weights:
            yield node.input[1].removesuffix(_WEIGHT), node


def _with_bias(
    node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]], weights: set[str]
) -> str:
    """Return the node's output, or that of the Add of a bias behind it."""
    output: str = node.output[0]
    readers = users[output]
    if len(readers) == 1 and readers[0].op_type == "Add" and weights & set(readers[0].input):
        return str(readers[0].output[0])
    return output


def _attention_before(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]
) -> AttentionTensors | None:
    """Return the attention that a projection reads, if any, its gate aside."""
    joined = producers.get(node.input[0])
    is_gated = joined is not None and joined.op_type == "Mul"
    ends = map(producers.get, joined.input) if joined is not None and is_gated else [joined]
    return next((found for end in ends if (found := _attention_ending_in(end, producers))), None)


def _attention_ending_in(
    before: onnx.NodeProto | None, producers: dict[str, onnx.NodeProto]
) -> AttentionTensors | None:
    """Return the attention whose last node is given: heads joined, values mixed, a softmax."""
    for operator in ("Reshape", "Transpose"):
        if before is None or before.op_type != operator:
            return None
        before = producers.get(before.input[0])
    if before is None or before.op_type != "MatMul":
        return None
    softmax = producers.get(before.input[0])
    if softmax is None or softmax.op_type != "Softmax":
        return None
    return AttentionTensors(before.input[0], before.input[1], before.output[0])
