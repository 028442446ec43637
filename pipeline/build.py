"""The command build: an engine from a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechquant.core.bundles import load_bundle
from speechquant.core.ctc import MODEL
from speechquant.core.engine_folders import Engine, EngineGraph, engine_bytes
from speechquant.engines.build import build_engine, options_from_text
from speechquant.engines.tensorrt.layers import LayerReport, layer_report
from speechquant.pipeline.console import megabytes, print_json, print_table, progress

# What is the same for all graphs of an engine.
_SHARED_FACTS = ("backend", "target", "toolchain", "source", "rest", "settings")


def run_build(bundle: Path, out: Path, *, force: bool, as_json: bool, **asked: Any) -> None:
    """Build what is asked for, and show what its products run in."""
    source = load_bundle(bundle)
    options = options_from_text(source, **asked)
    with progress("building") as on_step:
        engine = build_engine(source, out, options, force=force, on_step=on_step)
    if as_json:
        print_json(engine_facts(engine))
        return
    manifest = engine.manifest
    print(
        f"{out}: {manifest.backend} for {manifest.target}, {megabytes(engine_bytes(engine))}, "
        f"rest in {manifest.rest}, built in {engine.build_seconds:.1f} s"
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
