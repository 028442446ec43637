"""The command export: a bundle from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.exporter.export import export_with_parity
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import megabytes, print_json
from speechquant.pipeline.sources import checkpoint_of


def export(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, hub id, zoo:NAME or random:NAME.")
    ],
    out: options.BundleToWrite,
    word_times: Annotated[
        bool,
        typer.Option(
            "--word-times",
            help="Whisper: add the graph that finds the time of each word.",
            rich_help_panel=options.WHISPER,
        ),
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Turn a Hugging Face checkpoint into an ONNX bundle, checked against torch."""
    bundle, parity = export_with_parity(
        checkpoint_of(model), out, force=force, name=model, word_times=word_times
    )
    if json:
        print_json({**bundle_facts(bundle), "parity": [asdict(result) for result in parity]})
        return
    worst = max(result.max_difference for result in parity)  # none is NaN: the check was passed
    print(
        f"{out}: {bundle.spec.architecture}, {megabytes(bundle.size_bytes)}, "
        f"max |ONNX - torch| {worst:.1e}"
    )
    for note in bundle.spec.notes:
        print(f"note: {note}")


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what there is to say about a bundle."""
    if isinstance(bundle.spec, Seq2SeqSpec):
        return _seq2seq_facts(bundle, bundle.spec)
    spec = bundle.spec_as(CtcSpec)
    return {
        "bundle": str(bundle.folder),
        "architecture": spec.architecture,
        "task": spec.task,
        "precision": spec.precision,
        "sample_rate_hz": spec.sample_rate_hz,
        "min_samples": spec.min_samples,
        "padding_exact": spec.padding_exact,
        "size_bytes": bundle.size_bytes,
        "model_sha256": bundle.model_sha256,
        "inputs": [asdict(tensor) for tensor in spec.inputs],
        "outputs": [asdict(tensor) for tensor in spec.outputs],
        "layers": list(spec.layer_names),
        "quantizable_tensors": len(spec.layers),
        "files": list(bundle.files),
        "made_from": dict(bundle.made_from),
        "notes": list(spec.notes),
    }


def _seq2seq_facts(bundle: Bundle, spec: Seq2SeqSpec) -> dict[str, Any]:
    return {
        "bundle": str(bundle.folder),
        "architecture": spec.architecture,
        "task": spec.task,
        "precision": spec.precision,
        "sample_rate_hz": spec.sample_rate_hz,
        "chunk_seconds": spec.chunk_seconds,
        "languages": sorted(spec.generation.languages),
        "size_bytes": bundle.size_bytes,
        "model_sha256": bundle.model_sha256,
        "graphs": {
            name: {
                "inputs": [asdict(tensor) for tensor in graph.inputs],
                "outputs": [asdict(tensor) for tensor in graph.outputs],
            }
            for name, graph in spec.graphs.items()
        },
        "layers": list(spec.layer_names),
        "quantizable_tensors": len(spec.layers),
        "files": list(bundle.files),
        "made_from": dict(bundle.made_from),
        "notes": list(spec.notes),
    }
