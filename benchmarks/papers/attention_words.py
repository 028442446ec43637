"""The words that attention in INT8 costs.

`python -m speechquant.benchmarks.papers.attention_words`. Both models of the zoo at W8A8, with and
without, on clips of zoo:test through ONNX Runtime. Writes Markdown to stdout.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.markdown import change_cell, print_heading, print_row
from speechquant.calibrators.methods import STABLEQUANT
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.scales import ScaleTable
from speechquant.core.wer import difference_interval
from speechquant.exporter.ctc import export
from speechquant.recipes.experiment import Experiment
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

CALIBRATION_CLIPS, SCORED_CLIPS = 100, 200
BITS = 8
METHODS = ("max", "mse", STABLEQUANT)


def print_model(name: str, folder: Path) -> None:
    """Print a row for each method on one model of the zoo."""
    bundle = export(TRAINED_MODELS / name, folder / "float")
    calibration = read_data_set(corpus_manifest("dev"))[:CALIBRATION_CLIPS]
    clips = read_data_set(corpus_manifest("test"))[:SCORED_CLIPS]
    without = Experiment(bundle, calibration, clips, folder / "work")
    benches = (without, replace(without, work=folder / "attention", attention=True))
    print_heading(
        f"zoo:{name}, {len(clips)} clips, float {100 * without.float_words.rate:.2f} %",
        "method",
        "WER, attention's products in float",
        "quantized",
        "points between them, 95 % interval",
        "points from float, 95 % interval",
    )
    for method in METHODS:
        before, after = (bench.score(_table(bench, method)) for bench in benches)
        rates = (f"{100 * scored.words.rate:.2f} %" for scored in (before, after))
        between = difference_interval(before.words, after.words)
        print_row(method, *rates, change_cell(between), change_cell(after.drop))
        sys.stdout.flush()


def _table(bench: Experiment, method: str) -> ScaleTable:
    return bench.search(BITS).table if method == STABLEQUANT else bench.table(method, BITS)


def main() -> None:
    """Print both models."""
    sys.stdout.write(
        f"# Attention's own products at W8A8, measured\n\nOn {describe_scoring()}.\n"
        f"Calibrated and searched on {CALIBRATION_CLIPS} clips of zoo:dev. "
        "The intervals are paired bootstraps.\n"
    )
    for name in CTC_MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print_model(name, Path(folder))


if __name__ == "__main__":
    main()
