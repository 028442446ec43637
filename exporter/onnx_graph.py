"""From a torch module to an ONNX model with names that people can read."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from speechquant.core.onnx_files import WEIGHT_OPERATORS

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

OPSET = 20  # the first with Gelu as one node
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_tensor_cache() -> Iterator[None]:
    """Keep torch from remembering what each operator gives.

    Where lengths vary, what it remembers is seldom asked for: a tenth to a third of the trace of a
    CTC model went into it.
    """
    from torch._dynamo import config

    name = "fake_tensor_cache_enabled"
    before = getattr(config, name, None)  # a setting of torch's inside, which a later one may lack
    if before is None:
        yield
        return
    setattr(config, name, False)
    try:
        yield
    finally:
        setattr(config, name, before)


def traced(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    output_names: Sequence[str],
    dynamic_shapes: tuple[Any, ...],
) -> ir.Model:
    """Return the ONNX model of what `module` does with tensors like `inputs`, named as they are.

    `dynamic_shapes` names the dimensions that vary, by argument of the module.
    """
    import torch

    with _quiet_exporter(), _without_tensor_cache(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(output_names),
            dynamic_shapes=dynamic_shapes,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model


def quantizable_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the convolutions and matrix products with constant weights, in the graph's order."""
    return [
        node
        for node in model.graph
        if node.op_type in WEIGHT_OPERATORS
        and node.inputs[1] is not None
        and node.inputs[1].is_initializer()
    ]


def _module_of(node: ir.Node) -> str:
    # The scopes run from the root to the operator; the last but one is the module that holds it.
    scopes: list[str] = ast.literal_eval(node.metadata_props[_SCOPES_KEY])
    return scopes[-2]


def name_after_modules(model: ir.Model, layer_of: Callable[[str], str]) -> dict[str, str]:
    """Name weights and activations after their modules; return the map from activation to layer.

    An activation that several modules share is named after the first of them; one that is an input
    of the graph keeps its name. `layer_of` gives the layer of a module's path.
    """
    layers: dict[str, str] = {}
    for node in quantizable_nodes(model):
        module = _module_of(node)
        activation, weight = node.inputs[0], node.inputs[1]
        if activation is None or weight is None:
            raise ValueError(f"{module}: an input is missing")
        weight.name = f"{module}.weight"
        if activation.name not in layers:
            if not activation.is_graph_input():
                activation.name = f"{module}.input"
            layers[activation.name or ""] = layer_of(module)
    return layers


def name_outputs(
    model: ir.Model, layer_of: Callable[[str], str], named: Collection[str]
) -> dict[str, str]:
    """Name what each product with weights gives, its bias included; return tensor -> layer.

    What is among `named` already, and what is an output of the graph, keeps its name.
    """
    layers: dict[str, str] = {}
    for node in quantizable_nodes(model):
        module, output = _module_of(node), _with_bias(node)
        if not (output.is_graph_output() or output.name in named):
            output.name = f"{module}.output"
        layers[output.name or ""] = layer_of(module)
    return layers


def _with_bias(node: ir.Node) -> ir.Value:
    """Return the node's output, or that of the Add of a bias behind it."""
    output, users = node.outputs[0], node.outputs[0].uses()
    if len(users) == 1 and not output.is_graph_output():
        (after,) = (use.node for use in users)
        bias = [value for value in after.inputs if value is not None and value.is_initializer()]
        if after.op_type == "Add" and bias:
            return after.outputs[0]
    return output


def name_attention(model: ir.Model, layer_of: Callable[[str], str]) -> dict[str, str]:
    """Name what each attention multiplies; return the map from activation to layer.

    What is an input or output of the graph keeps its name.
    """
    layers: dict[str, str] = {}
    for node in model.graph:
        left, right = node.inputs[:2] if node.op_type == "MatMul" else (None, None)
        if left is None or right is None or right.is_initializer():
            continue
        module, before = _module_of(node), left.producer()
        is_second = before is not None and before.op_type == "Softmax"
        names = ("probabilities", "values") if is_second else ("queries", "keys")
        for value, name in zip((left, right), names, strict=True):
            if not (value.is_graph_input() or value.is_graph_output()):
                value.name = f"{module}.{name}"
            layers[value.name or ""] = layer_of(module)
    return layers


def drop_trace_notes(model: ir.Model) -> None:
    """Remove the tracer's notes on nodes and values: half the file, with paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def name_dims(output: ir.Value, names: Mapping[int, str]) -> None:
    """Call dimensions of an output by a name instead of a formula of others."""
    import onnx_ir as ir

    if output.shape is None:
        raise ValueError("the traced graph has no output shape")
    output.shape = ir.Shape([names.get(axis, dim) for axis, dim in enumerate(output.shape)])
