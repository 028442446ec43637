"""From a torch module to an ONNX model with names that people can read."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from speechquant.core.onnx_files import WEIGHT_OPERATORS

if TYPE_CHECKING:
    import onnx_ir as ir

    from speechquant.exporter.ctc_graph import CtcGraph

OPSET = 20  # the first with Gelu as one node
INPUT_VALUES, INPUT_LENGTHS, LOGITS = "input_values", "input_lengths", "logits"
_TRACED_SAMPLES = (16_037, 12_011)
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


def trace(graph: CtcGraph) -> ir.Model:
    """Return the ONNX model of `graph` with dynamic batch and length."""
    import torch

    waves = torch.zeros(len(_TRACED_SAMPLES), max(_TRACED_SAMPLES))
    lengths = torch.tensor(_TRACED_SAMPLES)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (waves, lengths),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_VALUES, INPUT_LENGTHS],
            output_names=[LOGITS],
            dynamic_shapes=({0: "batch", 1: "samples"}, {0: "batch"}),
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


def layer_of_module(module: str) -> str:
    """Return the layer, in StableQuant's sense, that a module path of CtcGraph belongs to."""
    parts = module.split(".")
    match parts[:2]:
        case ["feature_extractor", "conv_layers"]:
            return f"conv.{parts[2]}"
        case ["encoder", "layers"]:
            return f"block.{parts[2]}"
        case ["encoder", "pos_conv_embed"]:
            return "pos_conv"
        case ["feature_projection", _]:
            return "feature_projection"
        case ["head", *_]:
            return "head"
    raise ValueError(f"no layer for the module {module}")


def name_after_modules(model: ir.Model) -> dict[str, str]:
    """Name weights and activations after their modules; return the map from activation to layer.

    An activation that several modules share is named after the first of them.
    """
    layers: dict[str, str] = {}
    for node in quantizable_nodes(model):
        module = _module_of(node)
        activation, weight = node.inputs[0], node.inputs[1]
        if activation is None or weight is None:
            raise ValueError(f"{module}: an input is missing")
        weight.name = f"{module}.weight"
        if activation.name not in layers:
            activation.name = f"{module}.input"
            layers[activation.name] = layer_of_module(module)
    return layers


def name_attention(model: ir.Model) -> dict[str, str]:
    """Name what each attention multiplies; return the map from activation to layer."""
    layers: dict[str, str] = {}
    for node in model.graph:
        left, right = node.inputs[:2] if node.op_type == "MatMul" else (None, None)
        if left is None or right is None or right.is_initializer():
            continue
        module, before = _module_of(node), left.producer()
        is_second = before is not None and before.op_type == "Softmax"
        names = ("probabilities", "values") if is_second else ("queries", "keys")
        for value, name in zip((left, right), names, strict=True):
            value.name = f"{module}.{name}"
            layers[value.name] = layer_of_module(module)
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


def name_output_dims(model: ir.Model) -> None:
    """Call the logits' dimensions batch and frames instead of formulas of the length."""
    import onnx_ir as ir

    output = model.graph.outputs[0]
    if output.shape is None:
        raise ValueError("the traced graph has no output shape")
    output.shape = ir.Shape(["batch", "frames", output.shape[2]])
