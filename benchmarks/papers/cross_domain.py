"""A model calibrated on one kind of speech and tested on others, at W8A8 by method.

`python -m speechquant.benchmarks.papers.cross_domain --data LIBRISPEECH,hold_out=8 --data
AN4,hold_out=8`. The speakers held out of each set are tested on, the others calibrate. The
synthetic corpus is always one of the sets. A second table shows how many clips it takes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.ctc_models import ZOO_MODELS, bundle_of, name_of
from speechquant.benchmarks.papers.markdown import cell, print_heading, print_row
from speechquant.benchmarks.papers.splits import DataSplit, held_out_split, thinned, zoo_split
from speechquant.calibrators.methods import BALANCED
from speechquant.core.bundles import Bundle
from speechquant.core.errors import told_in_one_line
from speechquant.recipes.experiment import Experiment, Scored
from speechquant.training.samples import Extra

METHODS = ("max", "percentile", "mse", "entropy", BALANCED)
COUNTS = (4, 16, 64)
TABLES = (PAIRS, NUMBERS) = ("pairs", "counts")
_BITS = 8


def scored(experiment: Experiment, method: str) -> Scored:
    """Return the errors at W8A8."""
    if method == BALANCED:
        return experiment.score_balanced(_BITS)
    return experiment.score(experiment.table(method, _BITS))


def measure_pairs(bundle: Bundle, name: str, sets: Sequence[DataSplit], work: Path) -> None:
    """Print a table for each test set: by what was calibrated on, and by method."""
    for tested in sets:
        experiments = [
            Experiment(bundle, given.calibration, tested.test, work / _name(given))
            for given in sets
        ]
        words = experiments[0].float_words
        title = f"{name} on {tested.name}, float {100 * words.rate:.2f}"
        print_heading(title, "calibrated on", *METHODS)
        for given, experiment in zip(sets, experiments, strict=True):
            print_row(given.name, *(cell(scored(experiment, method)) for method in METHODS))


def measure_counts(bundle: Bundle, name: str, split: DataSplit, work: Path) -> None:
    """Print a table of how many clips a method is calibrated on."""
    title = f"{name} on {split.name}, by clips that it is calibrated on"
    print_heading(title, "clips", *METHODS)
    for count in COUNTS:
        few = thinned(split.calibration, count)
        experiment = Experiment(bundle, few, split.test, work / f"{_name(split)}-{count}")
        print_row(len(few), *(cell(scored(experiment, method)) for method in METHODS))


def _name(split: DataSplit) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in split.name)


@told_in_one_line()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ZOO_MODELS[-1], help="of the zoo, or a folder")
    parser.add_argument("--data", type=Extra.parse, action="append", required=True)
    parser.add_argument("--clips", type=int, default=64, help="clips that are calibrated on")
    parser.add_argument("--test-clips", type=int, default=100)
    parser.add_argument("--only", choices=TABLES, help="one of the two tables")
    parser.add_argument("--work", type=Path, help="folder to keep what a killed run had done")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sets = [
        replace(split, test=thinned(split.test, options.test_clips))
        for split in [zoo_split(), *map(held_out_split, options.data)]
    ]
    sys.stdout.write("# Calibrated on one kind of speech, tested on another\n\n")
    sys.stdout.write(
        f"On {describe_scoring()}. W8A8, symmetric; WER in % on {options.test_clips} clips of "
        "each test set at most, in brackets the difference from float in points with its "
        f"paired-bootstrap 95 % interval. Calibrated on other speakers, {options.clips} clips at "
        "most where no number is given.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        name, bundle = name_of(options.model), bundle_of(options.model, work)
        if options.only != NUMBERS:
            few = [replace(s, calibration=thinned(s.calibration, options.clips)) for s in sets]
            measure_pairs(bundle, name, few, work)
        if options.only != PAIRS:
            measure_counts(bundle, name, sets[1], work)


if __name__ == "__main__":
    main()
