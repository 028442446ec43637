"""Export of a CTC checkpoint to a bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.bundles import (
    DESCRIPTION,
    FLOAT_PRECISION,
    Bundle,
    load_bundle,
    new_bundle,
)
from speechquant.core.ctc import CTC, MODEL_FILE, CtcSpec
from speechquant.core.files import refuse_existing, refuse_unwritable
from speechquant.core.onnx_files import require_packages, save_graph
from speechquant.core.specs import TensorSpec
from speechquant.exporter.checkpoints import Checkpoint, load_checkpoint
from speechquant.exporter.parity import (
    EXPORT_CASES_SECONDS,
    ParityResult,
    is_padding_exact,
    make_cases,
    measure,
    require_close,
)

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)

_NEEDED_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
_INPUT_VALUES, _INPUT_LENGTHS, _LOGITS = "input_values", "input_lengths", "logits"
_TRACED_SAMPLES = (16_037, 12_011)
_PADDING_NOTE = (
    "padding is not exact: the checkpoint normalises over the whole padded length, in torch too, "
    "so clips of different lengths should go through one at a time"
)


def export(
    model: str | Path, out: str | Path, *, force: bool = False, name: str | None = None
) -> Bundle:
    """Export the checkpoint folder, hub id or `random:NAME` `model` to the bundle `out`.

    `name` is what the bundle says it was made from, `model` where it is None. Raises what
    `export_with_parity` raises.
    """
    return export_with_parity(model, out, force=force, name=name)[0]


def export_with_parity(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    name: str | None = None,
    cases_seconds: Sequence[tuple[float, ...]] = EXPORT_CASES_SECONDS,
) -> tuple[Bundle, list[ParityResult]]:
    """Export like `export`, checking parity on batches of clips of the given lengths.

    Raises CheckpointError, ParityError, OutputExistsError, StorageError, MissingPackageError;
    then nothing is written.
    """
    out = Path(out)
    refuse_existing(out, DESCRIPTION, force=force)
    refuse_unwritable(out)
    require_packages("export", _NEEDED_PACKAGES, extra="export")
    checkpoint = load_checkpoint(str(model))
    log.info("torch runs the reference of the parity check")
    # Before the graph is made, because that takes the model's modules apart.
    cases = make_cases(checkpoint.model, checkpoint.sample_rate_hz, cases_seconds)
    log.info("tracing the graph")
    graph, spec = _graph_and_spec(checkpoint)
    with new_bundle(out, spec, _made_from(name or str(model)), force=force) as folder:
        log.info("writing the graph")
        save_graph(graph, folder / MODEL_FILE)
        for file, content in checkpoint.text_files.items():
            (folder / file).write_bytes(content)
        log.info("ONNX Runtime runs the parity check")
        results = measure(folder / MODEL_FILE, cases)
        require_close(results, checkpoint.source)
    return load_bundle(out), results


def _graph_and_spec(checkpoint: Checkpoint) -> tuple[ir.Model, CtcSpec]:
    import torch

    from speechquant.exporter.ctc_graph import CtcGraph
    from speechquant.exporter.onnx_graph import (
        drop_trace_notes,
        name_after_modules,
        name_attention,
        name_dims,
        name_outputs,
        traced,
    )

    config = checkpoint.model.config
    padding_exact = is_padding_exact(config)
    inputs = {
        _INPUT_VALUES: torch.zeros(len(_TRACED_SAMPLES), max(_TRACED_SAMPLES)),
        _INPUT_LENGTHS: torch.tensor(_TRACED_SAMPLES),
    }
    dims = ({0: "batch", 1: "samples"}, {0: "batch"})
    graph = traced(CtcGraph(checkpoint.model), inputs, [_LOGITS], dims)
    layers = name_after_modules(graph, layer_of_module)
    attention = name_attention(graph, layer_of_module)
    layer_outputs = name_outputs(graph, layer_of_module, {*layers, *attention})
    drop_trace_notes(graph)
    name_dims(graph.graph.outputs[0], {0: "batch", 1: "frames"})
    spec = CtcSpec(
        architecture=checkpoint.architecture,
        task=CTC,
        precision=FLOAT_PRECISION,
        sample_rate_hz=checkpoint.sample_rate_hz,
        normalize_waveform=checkpoint.normalize_waveform,
        padding_exact=padding_exact,
        conv_kernels=tuple(config.conv_kernel),
        conv_strides=tuple(config.conv_stride),
        attention_heads=config.num_attention_heads,
        inputs=(
            TensorSpec(_INPUT_VALUES, "float32", ("batch", "samples")),
            TensorSpec(_INPUT_LENGTHS, "int64", ("batch",)),
        ),
        outputs=(TensorSpec(_LOGITS, "float32", ("batch", "frames", config.vocab_size)),),
        layers=layers,
        decoding=checkpoint.decoding,
        notes=() if padding_exact else (_PADDING_NOTE,),
        attention=attention,
        layer_outputs=layer_outputs,
    )
    return graph, spec


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


def _made_from(source: str) -> dict[str, object]:
    tools = ("speechquant", "torch", "transformers", "onnx", "onnxscript")
    return {"checkpoint": source, "tools": {name: version(name) for name in tools}}
