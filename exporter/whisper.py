"""Export of a Whisper checkpoint to a bundle of three graphs, or of four."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.bundles import (
    DESCRIPTION,
    FLOAT_PRECISION,
    Bundle,
    load_bundle,
    new_bundle,
)
from speechquant.core.files import refuse_existing, refuse_unwritable
from speechquant.core.onnx_files import require_packages, save_graph, save_graphs_together
from speechquant.core.seq2seq import (
    ALIGN,
    CROSS,
    DECODER_DATA,
    DECODERS,
    ENCODER,
    LAST_PROJECTION,
    PREFILL,
    STEP,
    TASK,
    Seq2SeqSpec,
)
from speechquant.core.specs import GraphSpec, TensorSpec, graph_file
from speechquant.core.weights import TRAINED_WEIGHTS_FILE, write_trained_weights
from speechquant.exporter.checkpoints import WHISPER
from speechquant.exporter.trained_weights import named_in_graph
from speechquant.exporter.whisper_checkpoints import WhisperCheckpoint, load_whisper
from speechquant.exporter.whisper_parity import (
    WhisperParity,
    make_whisper_cases,
    measure_whisper,
    require_whisper_close,
)

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from speechquant.exporter.whisper_graphs import DecoderParts

log = logging.getLogger(__name__)

NEEDED_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
_TRACED_BATCH, _TRACED_PROMPT, _TRACED_PAST = 2, 3, 5


def export_whisper(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    name: str | None = None,
    word_times: bool = False,
) -> tuple[Bundle, list[WhisperParity]]:
    """Export a Whisper checkpoint, checked against torch on batches that were not traced.

    `name` is what the bundle says it was made from; `word_times` adds the graph that aligns tokens
    with the sound. Raises CheckpointError, ParityError,
    OutputExistsError, StorageError, MissingPackageError; then nothing is written.
    """
    out = Path(out)
    refuse_existing(out, DESCRIPTION, force=force)
    refuse_unwritable(out)
    require_packages("export", NEEDED_PACKAGES, extra="export")
    checkpoint = load_whisper(str(model))
    log.info("torch runs the reference of the parity check")
    heads = checkpoint.alignment_heads if word_times else ()
    cases = make_whisper_cases(checkpoint.model, checkpoint.generation.start, heads)
    log.info("tracing the graphs")
    graphs, spec = _graphs_and_spec(checkpoint, heads)
    with new_bundle(out, spec, _made_from(name or str(model)), force=force) as folder:
        log.info("writing the graphs")
        save_graph(graphs[ENCODER], folder / graph_file(ENCODER))
        decoders = {folder / graph_file(part): graphs[part] for part in DECODERS if part in graphs}
        save_graphs_together(decoders, folder / DECODER_DATA)
        for file, content in checkpoint.files.items():
            (folder / file).write_bytes(content)
        if checkpoint.trained_weights:
            trained = named_in_graph(checkpoint.trained_weights)
            write_trained_weights(trained, folder / TRAINED_WEIGHTS_FILE)
        log.info("ONNX Runtime runs the parity check")
        results = measure_whisper(folder, cases)
        require_whisper_close(results, checkpoint.source)
    return load_bundle(out), results


def cache_names(layers: int) -> tuple[list[str], list[str]]:
    """Return the names of the tokens' caches and of the encoder's, in the graphs' order."""

    def of(kind: str) -> list[str]:
        return [f"{kind}_{what}.{layer}" for layer in range(layers) for what in ("keys", "values")]

    return of("self"), of("cross")


def _graphs_and_spec(
    checkpoint: WhisperCheckpoint, heads: Sequence[tuple[int, int]]
) -> tuple[dict[str, ir.Model], Seq2SeqSpec]:
    from speechquant.exporter.tied_embedding import share_embedding
    from speechquant.exporter.whisper_graphs import DecoderParts

    config = checkpoint.model.config
    decoder = DecoderParts(checkpoint.model)
    graphs = {
        ENCODER: _encoder_graph(checkpoint),
        PREFILL: _prefill_graph(checkpoint, decoder),
        STEP: _step_graph(checkpoint, decoder),
    }
    if heads:
        graphs[ALIGN] = _align_graph(checkpoint, decoder, heads)
    for name in graphs.keys() - {ENCODER}:
        share_embedding(graphs[name])
    spec = Seq2SeqSpec(
        architecture=WHISPER,
        task=TASK,
        precision=FLOAT_PRECISION,
        sample_rate_hz=checkpoint.sample_rate_hz,
        attention_heads=config.decoder_attention_heads,
        decoder_layers=config.decoder_layers,
        features=checkpoint.features,
        generation=checkpoint.generation,
        graphs={
            name: _finished(graph, _OUTPUT_DIMS[name], config.encoder_layers)
            for name, graph in graphs.items()
        },
        notes=checkpoint.notes,
    )
    return graphs, spec


def _encoder_graph(checkpoint: WhisperCheckpoint) -> ir.Model:
    import torch

    from speechquant.exporter.onnx_graph import traced
    from speechquant.exporter.whisper_graphs import EncoderGraph

    features = checkpoint.features
    shape = (_TRACED_BATCH, features.mel_bins, features.chunk_frames - 2)
    return traced(
        EncoderGraph(checkpoint.model),
        {"features": torch.zeros(shape)},
        ["hidden"],
        ({0: "batch", 2: "frames"},),
    )


def _prefill_graph(checkpoint: WhisperCheckpoint, decoder: DecoderParts) -> ir.Model:
    from speechquant.exporter.onnx_graph import traced
    from speechquant.exporter.whisper_graphs import PrefillGraph

    own, cross = cache_names(checkpoint.model.config.decoder_layers)
    given = _prompt_and_hidden(checkpoint)
    return traced(PrefillGraph(decoder), given, ["logits", *own, *cross], _PROMPT_DIMS)


def _align_graph(
    checkpoint: WhisperCheckpoint, decoder: DecoderParts, heads: Sequence[tuple[int, int]]
) -> ir.Model:
    from speechquant.exporter.onnx_graph import traced
    from speechquant.exporter.whisper_graphs import AlignGraph

    given = _prompt_and_hidden(checkpoint)
    return traced(AlignGraph(decoder, heads), given, ["attention", "logits"], _PROMPT_DIMS)


_PROMPT_DIMS = ({0: "batch", 1: "prompt"}, {0: "batch", 1: "positions"})


def _prompt_and_hidden(checkpoint: WhisperCheckpoint) -> dict[str, torch.Tensor]:
    import torch

    config = checkpoint.model.config
    return {
        "tokens": torch.zeros(_TRACED_BATCH, _TRACED_PROMPT, dtype=torch.long),
        "hidden": torch.zeros(_TRACED_BATCH, config.max_source_positions - 1, config.d_model),
    }


def _step_graph(checkpoint: WhisperCheckpoint, decoder: DecoderParts) -> ir.Model:
    import torch

    from speechquant.exporter.onnx_graph import traced
    from speechquant.exporter.whisper_graphs import StepGraph

    config = checkpoint.model.config
    own, cross = cache_names(config.decoder_layers)
    heads = config.decoder_attention_heads

    def cache(count: int) -> torch.Tensor:
        return torch.zeros(_TRACED_BATCH, heads, count, config.d_model // heads)

    given = {
        "tokens": torch.zeros(_TRACED_BATCH, 1, dtype=torch.long),
        # Each its own: the tracer takes a tensor that is given twice for one input.
        **{name: cache(_TRACED_PAST) for name in own},
        **{name: cache(config.max_source_positions - 1) for name in cross},
    }
    by_token, by_position = {0: "batch", 2: "past"}, {0: "batch", 2: "positions"}
    dims = ({0: "batch"}, (*(by_token for _ in own), *(by_position for _ in cross)))
    return traced(StepGraph(decoder), given, ["logits", *(f"new_{name}" for name in own)], dims)


# Dimensions that the tracer leaves as formulas of others, by the start of the output's name.
_OUTPUT_DIMS: dict[str, dict[str, dict[int, str]]] = {
    ENCODER: {"hidden": {0: "batch", 1: "positions"}},
    PREFILL: {
        "logits": {0: "batch", 1: "prompt"},
        "self_": {0: "batch", 2: "prompt"},
        "cross_": {0: "batch", 2: "positions"},
    },
    ALIGN: {
        "attention": {0: "batch", 2: "prompt", 3: "positions"},
        "logits": {0: "batch"},
    },
    STEP: {"logits": {0: "batch"}, "new_self_": {0: "batch", 2: "past + 1"}},
}


def _finished(
    graph: ir.Model, output_dims: dict[str, dict[int, str]], encoder_blocks: int
) -> GraphSpec:
    """Name what is in the graph after its modules, and describe it."""
    from speechquant.exporter.onnx_graph import (
        drop_trace_notes,
        name_after_modules,
        name_dims,
    )

    layer_of = partial(layer_of_whisper_module, encoder_blocks=encoder_blocks)
    layers = name_after_modules(graph, layer_of)
    drop_trace_notes(graph)
    for output in graph.graph.outputs:
        names = next(
            dims for start, dims in output_dims.items() if (output.name or "").startswith(start)
        )
        name_dims(output, names)
    return GraphSpec(
        inputs=tuple(map(_tensor_spec, graph.graph.inputs)),
        outputs=tuple(map(_tensor_spec, graph.graph.outputs)),
        layers=layers,
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise ValueError(f"{value.name}: the traced graph does not say what it is")
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name or "", value.dtype.numpy().name, dims)


def layer_of_whisper_module(module: str, encoder_blocks: int) -> str:
    """Return the layer, in StableQuant's sense, that a module path of a Whisper graph belongs to.

    Two are layers of their own because they may have to stay in float: the output projection of the
    encoder's last attention, and the encoder's output, which every block of the decoder projects.
    """
    parts = module.split(".")
    match parts:
        case ["layers", number, "self_attn", "out_proj", *_] if int(number) == encoder_blocks - 1:
            return LAST_PROJECTION
        case ["conv1" | "conv2" as conv, *_]:
            return f"encoder.conv.{int(conv[-1]) - 1}"
        case ["layers", number, *_]:
            return f"encoder.block.{number}"
        case ["decoder", "layers", _, "encoder_attn", "k_proj" | "v_proj", *_]:
            return CROSS
        case ["decoder", "layers", number, *_]:
            return f"decoder.block.{number}"
        case ["decoder", "head", *_]:
            return "head"
    raise ValueError(f"no layer for the module {module}")


def _made_from(source: str) -> dict[str, Any]:
    tools = ("speechquant", "torch", "transformers", "onnx", "onnxscript")
    return {"checkpoint": source, "tools": {name: version(name) for name in tools}}
