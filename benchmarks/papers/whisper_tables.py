"""WER of zoo:whisper in float and at W8A8.

`python -m speechquant.benchmarks.papers.whisper_tables`. Every method with the encoder and the
decoder quantized and with the encoder alone, on zoo:test, calibrated and searched on zoo:dev.
Writes Markdown to --out.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.markdown import cell, heading_rows, markdown_row
from speechquant.benchmarks.papers.splits import zoo_split
from speechquant.calibrators.methods import EMA, STABLEQUANT
from speechquant.core.errors import told_in_one_line
from speechquant.core.files import new_file
from speechquant.core.seq2seq import CROSS, ENCODER, LAST_PROJECTION
from speechquant.exporter.whisper import export_whisper
from speechquant.recipes.executors.options import ExecutorOptions
from speechquant.recipes.experiment import Experiment, Scored
from speechquant.zoo.models import TRAINED_MODELS, WHISPER

_BITS = 8


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    method: str
    symmetric: bool = True


METHODS = (
    Method("EMA min/max, asymmetric (the paper's simulation)", EMA, symmetric=False),
    Method("EMA min/max, symmetric (for engines)", EMA),
    Method("max", "max"),
    Method("StableQuant, searched", STABLEQUANT),
)
OTHER_METHODS = tuple(Method(name, name) for name in ("percentile", "mse", "entropy"))
DEFAULT = (LAST_PROJECTION, CROSS)


def score(bench: Experiment, method: Method, kept: tuple[str, ...]) -> Scored:
    """Return the word errors of a method with the layers `kept` in float."""
    if method.method == STABLEQUANT:
        return bench.score(bench.search(_BITS, float_layers=kept).table)
    table = bench.table(method.method, _BITS, float_layers=kept, symmetric=method.symmetric)
    return bench.score(table)


def wer_table(
    bench: Experiment, methods: Sequence[Method], columns: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Return a row for each method; columns are named with what stays in float."""
    rows = heading_rows("method", *columns)
    in_float = f"{100 * bench.float_words.rate:.2f}"
    rows.append(markdown_row("float", *[in_float] * len(columns)))
    for method in methods:
        scored = [cell(score(bench, method, kept)) for kept in columns.values()]
        rows.append(markdown_row(method.name, *scored))
    return rows


def tables(bench: Experiment) -> list[str]:
    """Return all tables."""
    names = bench.bundle.spec.layer_names
    decoder = tuple(name for name in names if not name.startswith(f"{ENCODER}."))
    both = {"encoder and decoder": DEFAULT}
    return [
        *wer_table(bench, METHODS, both | {"encoder alone": (LAST_PROJECTION, *decoder)}),
        "",
        "The other methods:",
        "",
        *wer_table(bench, OTHER_METHODS, both),
    ]


@told_in_one_line()
def main() -> None:
    """Write the table to the folder --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, help="folder to keep what a killed run had done")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = zoo_split()
    words = sum(len((clip.text or "").split()) for clip in split.test)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        bundle, _ = export_whisper(
            TRAINED_MODELS / WHISPER, work / "float", force=True, name=f"zoo:{WHISPER}"
        )
        bench = Experiment(
            bundle, split.calibration, split.test, work, ExecutorOptions(workers=options.workers)
        )
        lines = [
            "# Whisper at W8A8: word errors",
            "",
            f"Made by `make whisper-tables` on {describe_scoring()}. zoo:{WHISPER} on {split.name} "
            f"({len(split.test)} clips, {words} words), calibrated and searched on "
            f"{len(split.calibration)} clips of zoo:dev. Every cell is the word error rate of a "
            "bundle run by ONNX Runtime, in %, and in brackets the difference from float in points "
            "with its paired-bootstrap 95 % interval. What is left in float: the last output "
            "projection of the encoder's attention and what reads the encoder's output, and with "
            "the encoder alone the decoder. The embedding is in integers in all of them.",
            "",
            *tables(bench),
        ]
    with new_file(options.out / "whisper-words.md", force=True) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
