"""The command build: an engine from a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechquant.core.bundles import load_bundle
from speechquant.core.engine_folders import Engine
from speechquant.engines.build import build_engine, options_from_text
from speechquant.engines.tensorrt_layers import LayerReport, layer_report
from speechquant.pipeline.console import megabytes, print_json, print_table, progress


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
        f"rest in {manifest.rest}, built in {manifest.build_seconds:.1f} s"
    )
    report = layer_report(engine)
    if report is not None:
        print_products(report)


def engine_bytes(engine: Engine) -> int:
    """Return the size of what the backend loads, without logs and texts."""
    return engine.engine_path.stat().st_size


def engine_facts(engine: Engine) -> dict[str, Any]:
    """Return what there is to say about an engine."""
    manifest = asdict(engine.manifest)
    report = layer_report(engine)
    facts: dict[str, Any] = {
        "engine": str(engine.folder),
        "architecture": engine.spec.architecture,
        "engine_bytes": engine_bytes(engine),
        **manifest,
    }
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
