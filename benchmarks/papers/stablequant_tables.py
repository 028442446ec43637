"""The StableQuant paper's three tables on this project's models: WER of every method and width.

`python -m speechquant.benchmarks.papers.stablequant_tables --out docs/results` measures
zoo:wav2vec2 and zoo:hubert on zoo:test, calibrated on zoo:dev; with `--data PATH,hold_out=8` on
the last speakers of another set, calibrated on its other speakers. `--models` takes checkpoint
folders too, `--pair` a small and a large one for the end of Table III, and `--qat` a run of
`speechquant.zoo.train_quantized`.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers import stablequant_paper as paper
from speechquant.benchmarks.papers.ctc_models import ZOO_MODELS, experiment_of
from speechquant.benchmarks.papers.markdown import cell, change_cell, heading_rows, markdown_row
from speechquant.benchmarks.papers.splits import DataSplit, held_out_split, thinned, zoo_split
from speechquant.calibrators.calibrate import SEARCHES
from speechquant.calibrators.methods import LAYER_ADAPTIVE
from speechquant.calibrators.stablequant import SearchResult
from speechquant.core.errors import OptionError, told_in_one_line
from speechquant.core.files import new_file
from speechquant.core.graphs import PLACEMENTS
from speechquant.core.scales import read_scales
from speechquant.core.wer import difference_interval
from speechquant.exporter.ctc import export
from speechquant.recipes.experiment import Experiment, Scored
from speechquant.training.samples import Extra

WIDTHS = (16, 8, 7, 6, 5, 4)
_BALANCED_COLUMNS = (
    "balanced, s8", "balanced, u8", "balanced, s8 - StableQuant",
    "fitted, u8", "fitted, u8 - StableQuant",
)  # fmt: skip
METHODS = ("max", "ema", "percentile", "mse", "entropy")
FIT_CLIPS, FIT_WIDTHS = 32, (6, 5)
_NOT_IN_PAPER = _NOT_MEASURED = "-"

NOTES = """Activations are rounded at the inputs of products with weights, as engines take them, or
at the outputs of layers, as the paper clips them ("percentile-clipping is applied to the output
activations"): before the norm and the GELU that follow a convolution. The output of the paper's
conv k is, after norm and GELU, the input of conv k+1: where inputs are rounded, the paper's conv 0
is conv.1.

A method has two columns in Table II. "Plain" is the method on every layer as it is. "S, p" is the
paper's "when applying the layer-adaptive strategy", with StableQuant's S and p: of the layers in S
the histogram is cut off at p before the method sees it, of the others nothing is. So percentile
with S, p is S_c(p, 0), and mse differs from StableQuant only by the ranges that it does not try.
"Balanced" is this project's own method, without a search; s8 is symmetric, as TensorRT takes it, u8
asymmetric. "Fitted" is balanced with ranges moved until the outputs on some of the calibration
clips differ least from float's (`--fit-clips`), without their texts."""


@dataclass(frozen=True)
class Plan:
    """What is measured, on which models and how the search runs."""

    models: Sequence[str]
    widths: Sequence[int] = WIDTHS
    placements: Sequence[str] = PLACEMENTS
    search: str = "exhaustive"
    dev_clips: int | None = None
    limit: int | None = None
    workers: int = 1
    fit_clips: int = FIT_CLIPS
    fit_widths: Sequence[int] = FIT_WIDTHS
    pair: Sequence[str] = ()
    qat: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """The tables of one model on one split, its activations rounded in one place."""

    bench: Experiment
    plan: Plan

    @property
    def family(self) -> str:
        """Which of the paper's models this one is compared with."""
        return paper.family_of(self.bench.bundle.spec.architecture)

    def search(self, bits: int) -> SearchResult:
        """Return StableQuant's choice at a width."""
        dev = thinned(self.bench.calibration, self.plan.dev_clips)
        return self.bench.search(bits, self.plan.search, dev)

    def table_1(self) -> list[str]:
        """Return Table I: percentile calibration of the transformer alone and of all layers."""
        bench = self.bench
        names = bench.bundle.spec.layer_names
        rest = [layer for layer in names if not layer.startswith("block.")]
        rows = heading_rows(
            "width", "transformer layers only", "all layers", "paper: transformer", "paper: all"
        )
        in_float = [f"{100 * bench.float_words.rate:.2f}"] * 2
        rows.append(markdown_row("float", *in_float, *[paper.FLOAT[self.family]] * 2))
        for bits in self.plan.widths:
            transformer = bench.score(bench.table("percentile", bits, float_layers=rest))
            whole = bench.score(bench.table("percentile", bits))
            published = paper.TABLE_1[self.family].get(bits, (_NOT_IN_PAPER,) * 2)
            rows.append(markdown_row(f"W{bits}A{bits}", cell(transformer), cell(whole), *published))
        return rows

    def table_2(self) -> list[str]:
        """Return Table II: every method at every width, with StableQuant's S and p."""
        bench = self.bench
        plain = [f"{method}, plain" for method in METHODS]
        adaptive = [f"{method}, S, p" for method in LAYER_ADAPTIVE]
        own = _BALANCED_COLUMNS if bench.placement == PLACEMENTS[0] else ()
        rows = heading_rows("width", *plain, *adaptive, "StableQuant", "S", "p", *own)
        for bits in self.plan.widths:
            choice = self.search(bits).table
            tables = [bench.table(method, bits) for method in METHODS]
            tables += [bench.layer_adaptive(method, choice) for method in LAYER_ADAPTIVE]
            scored = [bench.score(table) for table in [*tables, choice]]
            cells = [cell(one) for one in scored]
            cells += [", ".join(choice.clipped_layers) or "none", f"{choice.percentile:.2f}"]
            if own:
                cells += self.own_cells(bits, scored[-1])
            rows.append(markdown_row(f"W{bits}A{bits}", *cells))
        rows += ["", "The paper's rows for its model of this family (methods with S, p):", ""]
        rows += heading_rows("width", *LAYER_ADAPTIVE, "StableQuant", "S", "p")
        published = paper.TABLE_2[self.family]
        return rows + [
            markdown_row(f"W{bits}A{bits}", *published[bits])
            for bits in self.plan.widths
            if bits in published
        ]

    def own_cells(self, bits: int, stablequant: Scored) -> list[str]:
        """Return the cells of this project's own method, and how it differs from StableQuant."""
        symmetric, asymmetric = (
            self.bench.score_balanced(bits, symmetric=is_symmetric)
            for is_symmetric in (True, False)
        )
        cells = [cell(symmetric), cell(asymmetric), _change(stablequant, symmetric)]
        if bits not in self.plan.fit_widths:
            return [*cells, _NOT_MEASURED, _NOT_MEASURED]
        fitted = self.bench.score_balanced(bits, symmetric=False, fit_clips=self.plan.fit_clips)
        return [*cells, cell(fitted), _change(stablequant, fitted)]

    def stage_1(self, bits: int) -> list[str]:
        """Return what each layer alone adds to WER, beside gamma and its size in words."""
        found = self.search(bits)
        errors = found.gamma_points / 100 * found.words
        rows = [
            f"Stage 1 at {bits} bits: gamma is {found.gamma_points:.2f} points, {errors:.1f} of "
            f"the {found.words} words of the development set ({found.utterances} clips, "
            f"{found.float_errors} errors in float).",
            "",
            *heading_rows(
                "layer", "errors added", "points", "95 % interval", "gamma is in it", "S"
            ),
        ]
        for effect in found.layers:
            interval = is_in = _NOT_MEASURED
            if effect.interval is not None:
                low, high = effect.interval
                interval = f"{low:+.2f} to {high:+.2f}"
                is_in = "yes" if low <= found.gamma_points <= high else "no"
            clipped = "yes" if effect.clipped else "no"
            points = f"{effect.points:+.2f}"
            rows.append(
                markdown_row(effect.layer, effect.added_errors, points, interval, is_in, clipped)
            )
        return rows

    def table_3(self, qat: Path | None) -> list[str]:
        """Return Table III: size and WER at W8A8, AdaRound and QAT beside StableQuant."""
        bench = self.bench
        rows = heading_rows("weights and activations", "graph", "WER")
        rows.append(_float_row("float", bench))
        levels, stablequant = bench.adaround(8), self.search(8).table
        mse = bench.table("mse", 8)
        variants = {
            "nearest, mse": bench.score(mse),
            "AdaRound, mse": bench.score(mse, levels),
            "nearest, StableQuant": bench.score(stablequant),
            "AdaRound, StableQuant": bench.score(stablequant, levels),
        }
        if qat is not None:
            variants["quantization-aware training from StableQuant's scales"] = self._trained(qat)
        return rows + [_size_row(name, scored) for name, scored in variants.items()]

    def _trained(self, run: Path) -> Scored:
        """Return the errors of what `zoo.train_quantized` left, with the scales that it learned."""
        source, work = run / "checkpoint", self.bench.work / "qat"
        bundle = export(source, work / "float", force=True, name=run.name)
        table = replace(read_scales(run / "scales.json"), model_sha256=bundle.model_sha256)
        return self.bench.score(table, bundle=bundle)


def _change(first: Scored, second: Scored) -> str:
    return change_cell(difference_interval(first.words, second.words))


def _float_row(name: str, bench: Experiment) -> str:
    size = sum(path.stat().st_size for path in bench.bundle.folder.glob("model.onnx*"))
    return markdown_row(name, f"{size / 1e6:.1f} MB", f"{100 * bench.float_words.rate:.2f}")


def _size_row(name: str, scored: Scored) -> str:
    return markdown_row(name, f"{scored.size_bytes / 1e6:.1f} MB", cell(scored))


def report_on(split: DataSplit, work: Path, plan: Plan) -> list[str]:
    """Return the tables of every model on one split."""
    words = sum(len((clip.text or "").split()) for clip in split.test)
    searched = len(thinned(split.calibration, plan.dev_clips))
    lines = [
        f"## {split.name}",
        "",
        f"{len(split.test)} clips, {words} words; calibrated on {len(split.calibration)} other "
        f"clips, searched ({plan.search}) on {searched} of them.",
        "",
    ]
    for model in plan.models:
        bench = experiment_of(model, split, work, plan.workers)
        for placement in plan.placements:
            tables = Tables(replace(bench, placement=placement), plan)
            lines += [f"### {model}, {placement}s rounded", ""]
            lines += ["Table I: percentile 99.99, WER in %.", "", *tables.table_1(), ""]
            lines += ["Table II: WER in %.", "", *tables.table_2(), ""]
            if 8 in plan.widths:
                lines += [*tables.stage_1(8), ""]
                qat = plan.qat.get(model) if placement == PLACEMENTS[0] else None
                lines += ["Table III: W8A8, WER in %.", "", *tables.table_3(qat), ""]
    if plan.pair:
        lines += ["### Small beside large", "", *_pair_rows(split, work, plan), ""]
    return lines


def _pair_rows(split: DataSplit, work: Path, plan: Plan) -> list[str]:
    rows = heading_rows("model", "graph", "WER")
    for model in plan.pair:
        tables = Tables(experiment_of(model, split, work, plan.workers), plan)
        rows.append(_float_row(f"{model}, float", tables.bench))
        scored = tables.bench.score(tables.search(8).table)
        rows.append(_size_row(f"{model}, StableQuant W8A8", scored))
    return rows


def _named_run(text: str) -> tuple[str, Path]:
    model, _, run = text.partition("=")
    return model, Path(run)


def _plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan; raises OptionError for a trained model that no table would show."""
    shown = options.models if PLACEMENTS[0] in options.placements else ()
    unseen = sorted(dict(options.qat).keys() - set(shown))
    if unseen:
        raise OptionError(
            f"--qat {unseen[0]}: only shown for one of --models, with --placements {PLACEMENTS[0]}"
        )
    return Plan(
        models=options.models,
        widths=options.widths,
        placements=options.placements,
        search=options.search,
        dev_clips=options.dev_clips,
        limit=options.limit,
        workers=options.workers,
        fit_clips=options.fit_clips,
        fit_widths=options.fit_widths,
        pair=options.pair,
        qat=dict(options.qat),
    )


@told_in_one_line()
def main() -> None:
    """Write every table to the folder --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/stablequant-tables"))
    parser.add_argument("--models", nargs="+", default=ZOO_MODELS)
    parser.add_argument("--data", type=Extra.parse, action="append", default=[])
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--search", choices=list(SEARCHES), default="exhaustive")
    parser.add_argument("--dev-clips", type=int, help="clips that are searched on; all by default")
    parser.add_argument("--limit", type=int, help="clips of each set, to see that it works")
    parser.add_argument("--pair", nargs=2, default=(), metavar=("SMALL", "LARGE"))
    parser.add_argument("--qat", type=_named_run, action="append", default=[], metavar="MODEL=RUN")
    parser.add_argument("--work", type=Path, help="folder to keep what a killed run had done")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fit-clips", type=int, default=FIT_CLIPS, help="of the fitted column")
    parser.add_argument("--fit-widths", type=int, nargs="+", default=FIT_WIDTHS)
    options = parser.parse_args()
    plan = _plan_of(options)
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
        NOTES,
        "",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for split in splits:
            lines += report_on(split.limited_to(plan.limit), options.work or Path(temporary), plan)
    lines += ["## The paper's Table III", "", *heading_rows("", "size", "WER")]
    lines += [markdown_row(*row) for row in paper.TABLE_3]
    with new_file(options.out / "stablequant.md", force=True) as partial:
        partial.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
