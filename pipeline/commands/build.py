"""The command build: an engine from a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from speechquant.core.bundles import load_bundle
from speechquant.core.ctc import MODEL
from speechquant.core.engine_folders import Engine, EngineGraph, engine_bytes
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import (
    FLOAT_TYPES,
    BuildOptions,
    batch_of,
    samples_of,
    three_numbers,
)
from speechquant.engines.registry import engine_backends
from speechquant.engines.tensorrt.layers import LayerReport, layer_report
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import megabytes, print_json, print_table, progress

# What is the same for all graphs of an engine.
_SHARED_FACTS = ("backend", "target", "toolchain", "source", "float_type", "settings")


def build(
    bundle: Annotated[
        Path, typer.Argument(help="Folder that `quantize` or `export` wrote.", readable=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the engine to write.", readable=False)],
    backend: Annotated[str, typer.Option(help=f"{', '.join(engine_backends())}.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="GPU to build for: sm86, rtx3090, ..., or current (the default).",
            rich_help_panel=options.TENSORRT,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="MIN,OPT,MAX length of a clip in seconds; on a GPU by default 0.1,10,30. Not for "
            "Whisper."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="MIN,OPT,MAX clips in one call; on a GPU by default 1,1,4, of Whisper 1,1,8."
        ),
    ] = None,
    float_type: Annotated[
        str | None,
        typer.Option(
            help=f"Type of what is not quantized: {', '.join(FLOAT_TYPES)}; on a GPU by default "
            "fp16."
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="TensorRT: file to read kernel timings from and add new ones to.",
            readable=False,
            rich_help_panel=options.TENSORRT,
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="TensorRT: let later versions of the same major version run the engine.",
            rich_help_panel=options.TENSORRT,
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible",
            help="TensorRT: let every GPU since Ampere run the engine.",
            rich_help_panel=options.TENSORRT,
        ),
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Build an engine from a W8A8 or float bundle, and show what precision it runs in."""
    source = load_bundle(bundle)
    seconds = None if lengths is None else three_numbers(lengths, "lengths")
    asked_for = BuildOptions(
        backend=backend,
        target=target,
        samples=None if seconds is None else samples_of(seconds, source.spec),
        batch=None if batch is None else batch_of(batch),
        float_type=float_type,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    with progress("building") as on_step:
        engine = build_engine(source, out, asked_for, force=force, on_step=on_step)
    if json:
        print_json(engine_facts(engine))
    else:
        _show(engine)


def _show(engine: Engine) -> None:
    manifest = engine.manifest
    print(
        f"{engine.folder}: {manifest.backend} for {manifest.target}, "
        f"{megabytes(engine_bytes(engine))}, float type {manifest.float_type}, "
        f"built in {engine.build_seconds:.1f} s"
    )
    for graph in engine.graphs.values():
        report = layer_report(graph)
        if report is not None:
            print_heading(graph)
            print_products(report)


def print_heading(graph: EngineGraph) -> None:
    """Show which of several graphs follows."""
    if graph.name != MODEL:
        print(f"\n{graph.name}")


def engine_facts(engine: Engine) -> dict[str, Any]:
    """Return what there is to say about an engine."""
    facts: dict[str, Any] = {
        "engine": str(engine.folder),
        "architecture": engine.spec.architecture,
        "engine_bytes": engine_bytes(engine),
    }
    graphs = {name: _graph_facts(graph) for name, graph in engine.graphs.items()}
    if MODEL in graphs:
        return facts | graphs[MODEL]
    manifest = asdict(engine.manifest)
    shared = {name: manifest[name] for name in _SHARED_FACTS}
    own = {
        name: {key: value for key, value in row.items() if key not in _SHARED_FACTS}
        for name, row in graphs.items()
    }
    return {**facts, **shared, "build_seconds": engine.build_seconds, "graphs": own}


def _graph_facts(graph: EngineGraph) -> dict[str, Any]:
    facts, report = asdict(graph.manifest), layer_report(graph)
    if report is not None:
        facts["layers"] = report.precisions()
        facts["products"] = report.counts()
    return facts


def print_products(report: LayerReport) -> None:
    """Show what the convolutions and matrix products of a graph run in."""
    rows = [
        [
            row["what"],
            row["runs"],
            str(row["layers"]),
            str(row["nodes"]),
            f"{row['fall_back']} NOT INT8" if row["fall_back"] else "",
        ]
        for row in report.counts()
    ]
    print_table(["product", "runs in", "layers", "graph nodes", ""], rows)
