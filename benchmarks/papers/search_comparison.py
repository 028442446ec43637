"""The fast search beside Algorithm 1: S, p, evaluations, seconds, and the WER that each one gives.

`python -m speechquant.benchmarks.papers.search_comparison > docs/results/search.md`. With --work a
killed run goes on; a search that was running begins again, because its seconds are measured.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from speechquant.benchmarks.bench.journal import Journal
from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.ctc_models import ZOO_MODELS, experiment_of
from speechquant.benchmarks.papers.markdown import change_cell, heading_rows, markdown_row
from speechquant.benchmarks.papers.splits import thinned, zoo_split
from speechquant.core.errors import OptionError, told_in_one_line
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.scales import ScaleTable, read_scales, write_scales
from speechquant.core.wer import DifferenceInterval, difference_interval
from speechquant.recipes.experiment import Experiment, Scored

WIDTHS = (8, 6)
SEARCHES = ("exhaustive", "fast")
_COST = "cost"
_COLUMNS = (
    "model", "width", "dev set", "S: exhaustive", "S: fast", "p: exhaustive", "p: fast",
    "evaluations: exhaustive", "evaluations: fast", "seconds: exhaustive", "seconds: fast",
    "WER: exhaustive", "WER: fast", "fast - exhaustive",
)  # fmt: skip
_SUMMARY_COLUMNS = (
    "model", "width", "same S", "same p", "most evaluations of the fast one",
    "mean of fast - exhaustive", "worst", "best", "better or worse beyond the interval",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one search chose, what it cost, and the choice's errors on the test set.

    `asked` are its evaluations, `exhaustive_evaluations` those of Algorithm 1.
    """

    table: ScaleTable
    asked: int
    exhaustive_evaluations: int
    seconds: float
    scored: Scored


@dataclass(frozen=True)
class Comparison:
    """Both searches on one development set of one model at one width."""

    model: str
    width: str
    dev_set: int
    exhaustive: Finding
    fast: Finding

    @property
    def difference(self) -> DifferenceInterval:
        """What the fast search's choice adds to the test set's WER."""
        return difference_interval(self.exhaustive.scored.words, self.fast.scored.words)

    @property
    def fast_share(self) -> float:
        """The fast search's evaluations, as a share of Algorithm 1's."""
        return self.fast.asked / self.exhaustive.exhaustive_evaluations


def find(
    bench: Experiment, bits: int, search: str, number: int, dev: Sequence[LabelledClip]
) -> Finding:
    """Run a search from nothing, or read what it found, and score what it chose."""
    found = bench.work / f"W{bits}A{bits}-{number}-{search}"
    scales = found.with_suffix(".json")
    clips = [clip_key(clip) for clip in (*bench.calibration, *dev)]
    key = data_key([bench.bundle.model_sha256, describe_scoring(), *clips])
    with Journal(found.with_suffix(".jsonl"), key) as journal:
        if journal.get(_COST) is None:
            _ = bench.statistics  # collected once, before the clock runs
            bench.search_log(search).unlink(missing_ok=True)
            started = time.monotonic()
            result = bench.search(bits, search, dev)
            seconds = time.monotonic() - started
            write_scales(result.table, scales, force=True)
            journal.add(_COST, (result.asked, result.exhaustive_evaluations, seconds))
        table = read_scales(scales)
        asked, of_all, seconds = journal.get(_COST)
        return Finding(table, asked, of_all, seconds, bench.score(table))


def comparison_row(row: Comparison) -> str:
    """Return one row of the table of all runs."""
    tables = [row.exhaustive.table, row.fast.table]
    return markdown_row(
        row.model,
        row.width,
        row.dev_set,
        *[_short(table.clipped_layers) for table in tables],
        *[f"{table.percentile:.2f}" for table in tables],
        row.exhaustive.asked,
        f"{row.fast.asked} ({100 * row.fast_share:.1f} %)",
        *[f"{finding.seconds:.0f}" for finding in (row.exhaustive, row.fast)],
        *[f"{100 * finding.scored.words.rate:.2f}" for finding in (row.exhaustive, row.fast)],
        change_cell(row.difference),
    )


def summary_row(model: str, width: str, rows: Sequence[Comparison]) -> str:
    """Return one row of the summary: how often both searches agree, and what it costs if not."""
    tables = [(row.exhaustive.table, row.fast.table) for row in rows]
    same_layers = sum(slow.clipped_layers == fast.clipped_layers for slow, fast in tables)
    same_percentile = sum(slow.percentile == fast.percentile for slow, fast in tables)
    differences = [row.difference for row in rows]
    points = [100 * difference.difference for difference in differences]
    better = sum(difference.high < 0 for difference in differences)
    worse = sum(difference.low > 0 for difference in differences)
    return markdown_row(
        model,
        width,
        f"{same_layers} of {len(rows)}",
        f"{same_percentile} of {len(rows)}",
        f"{100 * max(row.fast_share for row in rows):.1f} %",
        f"{fmean(points):+.2f}",
        f"{max(points):+.2f}",
        f"{min(points):+.2f}",
        f"{better} better, {worse} worse",
    )


def summary(rows: Sequence[Comparison]) -> list[str]:
    """Return the summary of each model at each width, and of all rows."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for row in rows:
        groups.setdefault((row.model, row.width), []).append(row)
    lines = [summary_row(*group, members) for group, members in groups.items()]
    return [*heading_rows(*_SUMMARY_COLUMNS), *lines, summary_row("all", "all", rows)]


def _short(layers: Sequence[str]) -> str:
    """Return layer names by kind: conv 0 1 2, block 1."""
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kind, _, number = layer.partition(".")
        kinds.setdefault(kind, []).append(number)
    return (
        ", ".join(" ".join([kind, *numbers]).strip() for kind, numbers in kinds.items()) or "none"
    )


@told_in_one_line()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=5, help="disjoint development sets of zoo:dev")
    parser.add_argument("--clips", type=int, default=80, help="clips of each set")
    parser.add_argument("--limit", type=int, help="clips of zoo:test to score on; all by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder to keep what a killed run had done")
    options = parser.parse_args()
    if min(options.sets, options.clips) < 1:
        raise OptionError("--sets and --clips: give 1 or more of each")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = zoo_split()
    split = replace(split, test=thinned(split.test, options.limit))
    sys.stdout.write("# The fast search beside Algorithm 1\n\n")
    sys.stdout.write(
        f"On {describe_scoring()}. Statistics of all of zoo:dev; {options.sets} disjoint sets of "
        f"{options.clips} clips of it to search on; WER in % on {len(split.test)} clips of "
        "zoo:test, with the paired-bootstrap 95 % interval of the difference.\n\n"
    )
    sys.stdout.write("\n".join(heading_rows(*_COLUMNS)) + "\n")
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in ZOO_MODELS:
            bench = experiment_of(model, split, options.work or Path(folder), options.workers)
            for bits, number in itertools.product(WIDTHS, range(options.sets)):
                dev = split.calibration[number :: options.sets][: options.clips]
                found = [find(bench, bits, search, number, dev) for search in SEARCHES]
                rows.append(Comparison(model, f"W{bits}A{bits}", number + 1, *found))
                sys.stdout.write(comparison_row(rows[-1]) + "\n")
                sys.stdout.flush()
    sys.stdout.write("\n## Summary\n\nDifferences in points of WER.\n\n")
    sys.stdout.write("\n".join(summary(rows)) + "\n")


if __name__ == "__main__":
    main()
