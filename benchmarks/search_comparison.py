"""The fast search beside Algorithm 1: S, p, evaluations, seconds, and the WER that each one gives.

`python -m speechquant.benchmarks.search_comparison > docs/results/search.md`
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from speechquant.benchmarks.machine import describe_machine
from speechquant.benchmarks.stablequant_tables import heading_rows, markdown_row, zoo_split
from speechquant.benchmarks.workbench import Workbench
from speechquant.calibrators.stablequant import SearchResult
from speechquant.core.manifests import LabelledClip
from speechquant.core.wer import difference_interval
from speechquant.exporter import export
from speechquant.zoo.models import MODEL_NAMES, TRAINED_MODELS

WIDTHS = (8, 6)
_COLUMNS = (
    "model", "width", "dev set", "S: exhaustive", "S: fast", "p: exhaustive", "p: fast",
    "evaluations: exhaustive", "evaluations: fast", "seconds: exhaustive", "seconds: fast",
    "WER: exhaustive", "WER: fast", "fast - exhaustive",
)  # fmt: skip


def timed_search(
    bench: Workbench, bits: int, search: str, dev: Sequence[LabelledClip]
) -> tuple[SearchResult, float]:
    """Return a search from nothing and its seconds."""
    _ = bench.statistics  # collected once, before the clock runs
    (bench.work / f"{search}-search.jsonl").unlink(missing_ok=True)
    started = time.monotonic()
    result = bench.search(bits, search, dev)
    return result, time.monotonic() - started


def compare(
    bench: Workbench, model: str, bits: int, number: int, dev: Sequence[LabelledClip]
) -> str:
    """Return one row: both searches on one development set, both choices on the test set."""
    exhaustive, slow_seconds = timed_search(bench, bits, "exhaustive", dev)
    fast, fast_seconds = timed_search(bench, bits, "fast", dev)
    of_exhaustive, of_fast = bench.score(exhaustive.table), bench.score(fast.table)
    difference = difference_interval(of_exhaustive.words, of_fast.words)
    return markdown_row(
        f"zoo:{model}",
        f"W{bits}A{bits}",
        number,
        _short(exhaustive.table.clipped_layers),
        _short(fast.table.clipped_layers),
        f"{exhaustive.table.percentile:.2f}",
        f"{fast.table.percentile:.2f}",
        exhaustive.asked,
        f"{fast.asked} ({100 * fast.asked / exhaustive.exhaustive_evaluations:.1f} %)",
        f"{slow_seconds:.0f}",
        f"{fast_seconds:.0f}",
        f"{100 * of_exhaustive.words.rate:.2f}",
        f"{100 * of_fast.words.rate:.2f}",
        f"{100 * difference.difference:+.2f} ({100 * difference.low:+.2f} to "
        f"{100 * difference.high:+.2f})",
    )


def _short(layers: Sequence[str]) -> str:
    """Return layer names by kind: conv 0 1 2, block 1."""
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kind, _, number = layer.partition(".")
        kinds.setdefault(kind, []).append(number)
    return (
        ", ".join(" ".join([kind, *numbers]).strip() for kind, numbers in kinds.items()) or "none"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=5, help="disjoint development sets of zoo:dev")
    parser.add_argument("--clips", type=int, default=80, help="clips of each set")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = zoo_split()
    sys.stdout.write("# The fast search beside Algorithm 1\n\n")
    sys.stdout.write(
        f"On {describe_machine()}. Statistics of all of zoo:dev; {options.sets} disjoint sets of "
        f"{options.clips} clips of it to search on; WER in % on zoo:test, with the "
        "paired-bootstrap 95 % interval of the difference.\n\n"
    )
    sys.stdout.write("\n".join(heading_rows(*_COLUMNS)) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        for model in MODEL_NAMES:
            work = Path(folder) / model
            bundle = export(TRAINED_MODELS / model, work / "float", name=f"zoo:{model}")
            bench = Workbench(bundle, split.calibration, split.test, work, options.workers)
            for bits in WIDTHS:
                for number in range(options.sets):
                    dev = split.calibration[number :: options.sets][: options.clips]
                    sys.stdout.write(compare(bench, model, bits, number + 1, dev) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
