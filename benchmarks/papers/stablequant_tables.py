"""The StableQuant paper's three tables on this project's models: WER of every method and width.

`python -m speechquant.benchmarks.papers.stablequant_tables --out docs/results` measures
zoo:wav2vec2 and zoo:hubert on zoo:test, calibrated on zoo:dev; with `--data PATH,hold_out=8` on
the last speakers of another set, calibrated on its other speakers.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.markdown import cell, heading_rows, markdown_row
from speechquant.benchmarks.papers.splits import DataSplit, held_out_split, zoo_split
from speechquant.core.files import new_file
from speechquant.exporter.ctc import export
from speechquant.recipes.experiment import Experiment
from speechquant.training.samples import Extra
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

WIDTHS = (16, 8, 6, 4)
METHODS = ("max", "ema", "percentile", "mse", "entropy")

# The paper's own rows (Hong et al.), WER in % on LibriSpeech test-clean; Table I is of percentile.
PAPER_TABLE_1: dict[str, dict[int, tuple[object, object]]] = {  # blocks only, all layers
    "hubert": {16: (2.16, 2.17), 8: (2.21, 3.03), 6: (2.55, 96.6), 4: (98.08, 99.98)},
    "wav2vec2": {16: (2.78, 2.82), 8: (2.78, 95.28), 6: (2.98, 99.96), 4: (61.03, ">100")},
}
PAPER_FLOAT = {"hubert": 2.16, "wav2vec2": 2.78}
PAPER_TABLE_2 = {  # percentile, mse, entropy, StableQuant, clipped convolutions, p
    "hubert": {
        16: (2.16, 2.16, 2.17, 2.16, "none", 0.0),
        8: (2.52, 2.56, 2.65, 2.35, "conv 0-2", 0.2),
        6: (55.55, 6.33, 10.84, 3.98, "conv 0-2", 0.16),
        4: (">100", 100, 93.41, 89.83, "conv 0-2", 0.0),
    },
    "wav2vec2": {
        16: (2.78, 2.78, 2.82, 2.78, "none", 0.0),
        8: (3.45, 5.18, 5.21, 3.07, "conv 0-3", 0.11),
        6: (99.95, 60.06, 42.92, 6.10, "conv 0-3", 0.21),
        4: (">100", 99.43, 99.95, 99.27, "conv 0-3", 0.05),
    },
}


PAPER_TABLE_3 = (
    ("float", "1205 MB", 2.16),
    ("AdaRound W8A8", "-", 2.66),
    ("StableQuant W8A8", "353 MB", 2.35),
    ("quantization-aware training W8A8", "357 MB", 2.34),
)


def table_1(bench: Experiment, model: str) -> list[str]:
    """Return Table I: percentile calibration of the transformer alone and of all layers."""
    names = bench.bundle.spec.layer_names
    rest = [layer for layer in names if not layer.startswith("block.")]
    paper = PAPER_TABLE_1[model]
    rows = heading_rows(
        "width", "transformer layers only", "all layers", "paper: transformer", "paper: all"
    )
    rows.append(
        markdown_row(
            "float", *[f"{100 * bench.float_words.rate:.2f}"] * 2, *[PAPER_FLOAT[model]] * 2
        )
    )
    for bits in WIDTHS:
        transformer = bench.score(bench.table("percentile", bits, float_layers=rest))
        whole = bench.score(bench.table("percentile", bits))
        rows.append(markdown_row(f"W{bits}A{bits}", cell(transformer), cell(whole), *paper[bits]))
    return rows


def table_2(bench: Experiment, model: str) -> list[str]:
    """Return Table II: every method at every width, with StableQuant's S and p."""
    rows = heading_rows("width", *METHODS, "StableQuant", "clipped layers", "p")
    for bits in WIDTHS:
        scored = [cell(bench.score(bench.table(method, bits))) for method in METHODS]
        table = bench.search(bits).table
        clipped = ", ".join(table.clipped_layers) or "none"
        scored += [cell(bench.score(table)), clipped, f"{table.percentile:.2f}"]
        rows.append(markdown_row(f"W{bits}A{bits}", *scored))
    rows += [
        "",
        "The paper's rows for its model of this family (its percentile, mse and entropy are "
        "applied with its layer-adaptive strategy; ours, above, to every layer as they are):",
        "",
    ]
    rows += heading_rows(
        "width", "percentile", "mse", "entropy", "StableQuant", "clipped layers", "p"
    )
    rows += [markdown_row(f"W{bits}A{bits}", *PAPER_TABLE_2[model][bits]) for bits in WIDTHS]
    return rows


def table_3(bench: Experiment) -> list[str]:
    """Return Table III: size and WER at W8A8, AdaRound beside StableQuant."""
    rows = heading_rows("weights and activations", "graph", "WER")
    float_bytes = sum(path.stat().st_size for path in bench.bundle.folder.glob("model.onnx*"))
    rows.append(
        markdown_row("float", f"{float_bytes / 1e6:.1f} MB", f"{100 * bench.float_words.rate:.2f}")
    )
    levels, stablequant, mse = bench.adaround(8), bench.search(8).table, bench.table("mse", 8)
    variants = {
        "nearest, mse": bench.score(mse),
        "AdaRound, mse": bench.score(mse, levels),
        "nearest, StableQuant": bench.score(stablequant),
        "AdaRound, StableQuant": bench.score(stablequant, levels),
    }
    for name, scored in variants.items():
        rows.append(markdown_row(name, f"{scored.size_bytes / 1e6:.1f} MB", cell(scored)))
    rows += ["", "The paper's rows, HuBERT-Large:", "", *heading_rows("", "size", "WER")]
    return rows + [markdown_row(*row) for row in PAPER_TABLE_3]


def report_on(split: DataSplit, work: Path, workers: int) -> list[str]:
    """Return the three tables of both models on one split."""
    words = sum(len((clip.text or "").split()) for clip in split.test)
    lines = [
        f"## {split.name}",
        "",
        f"{len(split.test)} clips, {words} words; calibrated and searched on "
        f"{len(split.calibration)} other clips.",
        "",
    ]
    for model in CTC_MODELS:
        folder = work / f"{model}-{split.name.split(',')[0].replace(':', '-')}"
        source = TRAINED_MODELS / model
        bundle = export(source, folder / "float", force=True, name=f"zoo:{model}")
        bench = Experiment(bundle, split.calibration, split.test, folder, workers)
        lines += [f"### zoo:{model}", "", "Table I: percentile 99.99, WER in %.", ""]
        lines += [*table_1(bench, model), "", "Table II: WER in %.", ""]
        lines += [*table_2(bench, model), "", "Table III: W8A8, WER in %.", ""]
        lines += [*table_3(bench), ""]
    return lines


def main() -> None:
    """Write every table to the folder --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--data", type=Extra.parse, action="append", default=[])
    parser.add_argument("--work", type=Path, help="folder to keep what a killed run had done")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    splits = [zoo_split(), *map(held_out_split, options.data)]
    lines = [
        "# StableQuant and its rivals, measured",
        "",
        f"Made by `make stablequant-tables` on {describe_scoring()}. Every cell is the word error "
        "rate of a quantized bundle run by ONNX Runtime, in %, and in brackets the difference from "
        "float in points with its paired-bootstrap 95 % interval. The paper's rows are of other "
        "models (HuBERT-Large, wav2vec2-Large) on LibriSpeech test-clean: only the pattern "
        "compares.",
        "",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for split in splits:
            lines += report_on(split, options.work or Path(temporary), options.workers)
    with new_file(options.out / "stablequant.md", force=True) as partial:
        partial.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
