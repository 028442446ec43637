"""Does a comparison of two reports hold.

`python -m speechquant.benchmarks.papers.regression_check`. The same builds are benched again and
again, and no pair of runs should show a regression; then one engine is slowed down on purpose, and
that should be caught, and nothing else. Writes Markdown to stdout.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from speechquant.benchmarks.bench.candidates import candidates_of
from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.bench.plan import Plan
from speechquant.benchmarks.bench.run import run_bench
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.benchmarks.report.comparison import REGRESSION, compare_reports
from speechquant.benchmarks.report.record import Report
from speechquant.benchmarks.report.statistics import LatencyStats
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.engine_folders import Engine, EngineManifest, load_engine, make_engine
from speechquant.core.manifests import LabelledClip
from speechquant.engines import BuildOptions, build_engine, quantize_bundle
from speechquant.exporter.ctc import export
from speechquant.recipes.experiment import Experiment
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import TRAINED_MODELS

MODEL = "hubert"
PAIRS = 10
LENGTHS_SECONDS, REPEATS = (1.0, 5.0, 10.0), 15
CALIBRATION_CLIPS = 50
# Channels of a convolution that no result depends on: each costs so much time.
SLOWDOWNS = (128, 512, 2048)
ENGINE = "engine"


def make_folders(folder: Path) -> list[Path]:
    """Return a float bundle, a W8A8 bundle and an engine."""
    bundle = export(TRAINED_MODELS / MODEL, folder / "fp32")
    clips = read_data_set(corpus_manifest("dev"))[:CALIBRATION_CLIPS]
    table = Experiment(bundle, clips, clips, folder / "work").table("max", 8)
    quantized = quantize_bundle(bundle, folder / "w8a8", table)
    engine = build_engine(quantized, folder / ENGINE, BuildOptions("onnxruntime"))
    return [bundle.folder, quantized.folder, engine.folder]


def slowed(engine: Engine, out: Path, channels: int) -> Engine:
    """Return the engine with work added that changes no result."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(engine.only_graph.engine_path)
    graph, logits = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{name}.fast" if name == logits else name for name in node.output]
    weights = np.zeros((channels, 1, 10), np.float32)
    axis = np.array([1], np.int64)
    graph.initializer.append(numpy_helper.from_array(weights, "slow.weights"))
    graph.initializer.append(numpy_helper.from_array(axis, "slow.axis"))
    graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["input_values", "slow.axis"], ["slow.image"]),
            helper.make_node("Conv", ["slow.image", "slow.weights"], ["slow.map"], strides=[5]),
            helper.make_node("ReduceMax", ["slow.map"], ["slow.zero"], keepdims=0),
            helper.make_node("Add", [f"{logits}.fast", "slow.zero"], [logits]),
        ]
    )

    (graph_name,) = engine.graphs

    def make(folder: Path) -> dict[str, EngineManifest]:
        onnx.save(model, folder / engine.manifest.engine_file)
        for name in engine.spec.text_files:
            if name in engine.files:
                shutil.copyfile(engine.folder / name, folder / name)
        return {graph_name: engine.manifest}

    return make_engine(out, engine.spec, make)


def measure(folders: Sequence[Path], clips: Sequence[LabelledClip], work: Path) -> Report:
    """Return a bench of the folders, latency alone."""
    plan = Plan(
        candidates=tuple(candidates_of(folders, ["cpu"])),
        clips=tuple(clips),
        data="zoo:test",
        work=work,
        lengths_seconds=LENGTHS_SECONDS,
        batches=(1,),
        repeats=REPEATS,
        counts_errors=False,
    )
    return run_bench(plan)


def print_pairs(reports: Sequence[Report]) -> None:
    """Print what each run and the one before it differ by."""
    print_heading(
        "The same builds, run again",
        "pair",
        "regressions",
        "float's time at 10 s, ms",
        "largest change of a median, in units of float's",
        "largest spread within a run",
    )
    for number, (old, new) in enumerate(pairwise(reports), start=1):
        found = compare_reports(old, new)
        changes = [change.change for change in found.changes if "latency at" in change.what]
        spread = max(
            LatencyStats.from_nanoseconds(cell.whole).spread
            for result in new.results
            for cell in result.cells
        )
        print_row(
            number,
            len(found.regressions),
            " to ".join(f"{_float_ms(report):.1f}" for report in (old, new)),
            f"{100 * max(abs(change - 1) for change in changes):.1f} %",
            f"{100 * spread:.1f} %",
        )


def _float_ms(report: Report) -> float:
    cell = report.results[0].cell(LENGTHS_SECONDS[-1], 1)
    return 1e3 * LatencyStats.from_nanoseconds(cell.whole).p50 if cell else float("nan")


def print_slowed(reports: Sequence[Report], old: Report) -> None:
    """Print what is said of each engine that was slowed down."""
    print_heading(
        "One engine slowed down", "channels", "candidate", "figure", "change", "interval", "verdict"
    )
    for channels, report in zip(SLOWDOWNS, reports, strict=True):
        for change in compare_reports(old, report).changes:
            if change.what.startswith("latency, mean") or change.verdict == REGRESSION:
                interval = "" if change.low is None else f"{change.low:.3f} to {change.high:.3f}"
                values = f"{change.change:.3f}", interval, change.verdict
                print_row(channels, change.candidate, change.what, *values)


def main() -> None:
    """Print both tables."""
    sys.stdout.write(f"# Telling a regression from noise, measured\n\nOn {describe_machine()}.\n")
    clips = read_data_set(corpus_manifest("test"))[:10]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = make_folders(folder)
        reports = [
            measure(folders, clips, folder / f"work-{number}") for number in range(PAIRS + 1)
        ]
        print_pairs(reports)
        engine, slow = load_engine(folders[-1]), []
        for channels in SLOWDOWNS:
            made = slowed(engine, folder / str(channels) / ENGINE, channels)
            slow.append(measure([*folders[:-1], made.folder], clips, folder / f"slow-{channels}"))
        print_slowed(slow, reports[-1])


if __name__ == "__main__":
    main()
