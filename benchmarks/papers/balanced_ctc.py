"""Balanced channels beside StableQuant and mse on CTC models, at several widths.

`python -m speechquant.benchmarks.papers.balanced_ctc > docs/results/balanced-ctc.md` measures the
models of the zoo on clips of zoo:test, calibrated and searched on zoo:dev. --data
LIBRISPEECH,hold_out=8 takes other speech: those speakers are tested on, the others calibrate.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.markdown import cell, print_heading, print_row
from speechquant.benchmarks.papers.splits import held_out_split, thinned, zoo_split
from speechquant.calibrators.calibrate import SEARCHES
from speechquant.core.wer import difference_interval
from speechquant.exporter.ctc import export
from speechquant.recipes.executors.options import ExecutorOptions
from speechquant.recipes.experiment import Experiment, Scored
from speechquant.training.samples import Extra
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

_COLUMNS = (
    "width", "mse", "StableQuant", "S", "p", "balanced, symmetric", "balanced, asymmetric",
    "balanced, symmetric - StableQuant",
)  # fmt: skip


def measure(bench: Experiment, bits: int, search: str, dev_clips: int) -> None:
    """Print the row of one width."""
    dev = bench.calibration[:: max(1, len(bench.calibration) // dev_clips)][:dev_clips]
    table = bench.search(bits, search, dev).table
    mse, stablequant = bench.score(bench.table("mse", bits)), bench.score(table)
    balanced = [bench.score_balanced(bits, symmetric=symmetric) for symmetric in (True, False)]
    print_row(
        f"W{bits}A{bits}",
        cell(mse),
        cell(stablequant),
        ", ".join(table.clipped_layers) or "none",
        f"{table.percentile:.2f}",
        *map(cell, balanced),
        _difference(stablequant, balanced[0]),
    )


def _difference(first: Scored, second: Scored) -> str:
    found = difference_interval(first.words, second.words)
    points = [100 * value for value in (found.difference, found.low, found.high)]
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*points)


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 7, 6, 5])
    parser.add_argument("--search", choices=list(SEARCHES), default="exhaustive")
    parser.add_argument("--dev-clips", type=int, default=400, help="clips that are searched on")
    parser.add_argument("--test-clips", type=int, default=200)
    parser.add_argument("--models", nargs="+", choices=CTC_MODELS, default=CTC_MODELS)
    parser.add_argument("--data", type=Extra.parse, help="PATH,hold_out=8 instead of the zoo's")
    parser.add_argument("--work", type=Path, help="folder to keep what a killed run had done")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = held_out_split(options.data) if options.data else zoo_split()
    split = replace(split, calibration=thinned(split.calibration, options.dev_clips))
    test = split.test[:: max(1, len(split.test) // options.test_clips)][: options.test_clips]
    sys.stdout.write("# Balanced channels beside StableQuant on CTC models\n\n")
    sys.stdout.write(
        f"On {describe_scoring()}. Calibrated on {len(split.calibration)} clips; "
        f"searched ({options.search}) on {options.dev_clips} of them; WER in % on {len(test)} "
        f"clips of {split.name}, in brackets the difference from float in points with its "
        "paired-bootstrap 95 % interval. Symmetric is what TensorRT takes, asymmetric needs "
        "`--qdq-format u8`.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            work = (options.work or Path(folder)) / model
            bundle = export(TRAINED_MODELS / model, work / "float", force=True, name=f"zoo:{model}")
            bench = Experiment(
                bundle, split.calibration, test, work, ExecutorOptions(workers=options.workers)
            )
            print_heading(f"zoo:{model}, float {100 * bench.float_words.rate:.2f}", *_COLUMNS)
            for bits in options.widths:
                measure(bench, bits, options.search, options.dev_clips)


if __name__ == "__main__":
    main()
