"""The commands export and evaluate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechquant.benchmarks.evaluation import ClipResult, Evaluation
from speechquant.benchmarks.evaluation import evaluate as evaluate_clips
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.core.wer import ErrorRate
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.pipeline.console import megabytes, print_json, print_table, progress
from speechquant.pipeline.sources import checkpoint_of, data_set_of


def run_export(model: str, out: Path, *, force: bool, as_json: bool) -> None:
    """Export and say what was written."""
    from speechquant.exporter.export import export_with_parity

    bundle, parity = export_with_parity(checkpoint_of(model), out, force=force, name=model)
    if as_json:
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


def run_evaluate(
    folder: Path,
    data: str,
    *,
    decoding: DecodingOptions,
    normalizer: str,
    limit: int | None,
    worst: int,
    provider: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Evaluate and show the errors."""
    opened = open_recognizer(folder, provider=provider, threads=threads, decoding=decoding)
    with opened as recognizer:
        runs_on = recognizer.provider
        with progress("rendering") as on_step:
            clips = data_set_of(data, require_text=True, on_step=on_step)[:limit]
        with progress("evaluating") as on_step:
            result = evaluate_clips(recognizer, clips, normalizer=normalizer, on_step=on_step)
    if as_json:
        facts = {"bundle": str(folder), "data": data, "provider": runs_on}
        print_json({**facts, **evaluation_facts(result)})
        return
    print_table(
        ERROR_HEADINGS,
        [error_row("words", result.words), error_row("characters", result.characters)],
    )
    print(
        f"{len(clips)} clips, {result.audio_seconds:.0f} s of audio in "
        f"{result.compute_seconds:.1f} s: real-time factor {result.real_time_factor:.3f}; "
        f"normalizer {normalizer}; provider {runs_on}"
    )
    for clip in result.worst(worst):
        print_clip(clip)


ERROR_HEADINGS = ("unit", "error rate", "errors", "of", "substituted", "inserted", "deleted")


def error_row(unit: str, rate: ErrorRate) -> list[str]:
    """Return a row under ERROR_HEADINGS."""
    counts = (
        rate.errors,
        rate.reference_length,
        rate.substitutions,
        rate.insertions,
        rate.deletions,
    )
    return [unit, f"{100 * rate.rate:.2f} %", *map(str, counts)]


def print_clip(clip: ClipResult) -> None:
    """Show what was said and what was heard."""
    print(f"\n{clip.name}: {clip.errors} of {clip.reference_words} words wrong")
    print(f"  said   {clip.reference}")
    print(f"  heard  {clip.hypothesis}")


def _rate_facts(rate: ErrorRate) -> dict[str, float | None]:
    return {
        "rate": rate.rate if rate.reference_length else None,
        "errors": rate.errors,
        "reference_length": rate.reference_length,
        "substitutions": rate.substitutions,
        "insertions": rate.insertions,
        "deletions": rate.deletions,
    }


def evaluation_facts(result: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values."""
    return {
        "wer": _rate_facts(result.words),
        "cer": _rate_facts(result.characters),
        "normalizer": result.normalizer,
        "audio_seconds": result.audio_seconds,
        "compute_seconds": result.compute_seconds,
        "real_time_factor": result.real_time_factor,
        "clips": [asdict(clip) for clip in result.clips],
    }
