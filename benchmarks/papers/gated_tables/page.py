"""The page, from records alone: what has none is shown as absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.papers.gated_tables.outliers import OutlierRecord
from speechquant.benchmarks.papers.gated_tables.run import BITS, Model, Pair, Run
from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row, points_of
from speechquant.benchmarks.papers.real_whisper.records import ABSENT, Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.rows import slug
from speechquant.benchmarks.papers.real_whisper.run import SetFacts
from speechquant.benchmarks.pictures.outliers import draw_attention, draw_outlier_dimensions
from speechquant.core.wer import difference_interval

PICTURES = "gated-attention"  # the folder beside the page
_HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Page:
    """A run, its records, and the folder that the page and its pictures lie in."""

    run: Run
    records: Records
    folder: Path

    def lines(self) -> list[str]:
        """Return the page."""
        return [
            "# Gated attention",
            "",
            *self._opening(),
            "",
            "## Table 1: outliers before quantization",
            "",
            *self._outlier_table(),
            "",
            "## Table 2: words before and after quantization",
            "",
            *self._words_table(),
            "",
            "## What gates change",
            "",
            *self._gates_table(),
            "",
            *self._figures(),
        ]

    def words(self, model: Model, test: SetFacts, bits: int | None) -> WordRecord | None:
        """Return the words of a model that has run."""
        record = self.records.read(WordRecord, self.run.words_name(model, test, bits))
        return None if record is None or record.reason is not None else record

    def outliers(self, model: Model) -> OutlierRecord | None:
        """Return a model's outliers."""
        return self.records.read(OutlierRecord, self.run.outliers_name(model))

    def _opening(self) -> list[str]:
        run = self.run
        return [
            "The tables and figures of Wagner et al., Outlier Reduction with Gated Attention. Made "
            f"by `make gated-tables` on {run.machine}, {run.threads} threads. Decoding is greedy, "
            "one clip at a time. Texts are compared as Whisper's English normalizer writes them.",
            "",
            "Weights have 8 bits and one scale a tensor. Activations are asymmetric, their ranges "
            "the exponential moving average of minimum and maximum. Those of the last projection "
            "of the encoder's attentions, and of what reads the final layer norm, stay float, as "
            "in the paper. Brackets hold the paired-bootstrap 95 % interval over clips.",
            "",
            *heading_rows("set", "clips", "hours"),
            *(_set_row(facts.name, facts) for facts in run.tests),
            _set_row("outliers", run.measured),
            _set_row("calibration", run.calibration),
        ]

    def _outlier_table(self) -> list[str]:
        lines = heading_rows(
            "model", "encoder layers", "gates", "average kurtosis", "largest infinity norm", "in",
        )  # fmt: skip
        for model in self.run.models:
            record = self.outliers(model)
            cells = [model.checkpoint.name, model.encoder_layers, model.gates or "none"]
            found = [ABSENT] * 3 if record is None else [
                f"{record.kurtosis:.1f}", f"{record.infinity_norm:.1f}", record.largest_in,
            ]  # fmt: skip
            lines.append(markdown_row(*cells, *found))
        return [
            *lines,
            "",
            "Kurtosis is that of each attention's output, averaged over attentions and clips; the "
            "norm is the largest magnitude in a module's output, averaged over clips.",
        ]

    def _words_table(self) -> list[str]:
        sizes = [pair.size for pair in self.run.pairs]
        lines = heading_rows("set", "activations", "gated", *sizes)
        for test in self.run.tests:
            for bits in (None, *BITS):
                for index, gated in enumerate(("no", "yes")):
                    cells = [
                        self._words_cell(pair.models[index], test, bits) for pair in self.run.pairs
                    ]
                    lines.append(markdown_row(test.name, _bits_name(bits), gated, *cells))
        return [*lines, "", "WER in %; of quantized rows with the difference from their own float."]

    def _words_cell(self, model: Model, test: SetFacts, bits: int | None) -> str:
        record = self.words(model, test, bits)
        if record is None:
            return ABSENT
        rate = f"{100 * record.words.rate:.2f}"
        if bits is None:
            return rate
        first = self.words(model, test, None)
        return f"{rate} ({ABSENT})" if first is None else f"{rate} {_interval(first, record)}"

    def _gates_table(self) -> list[str]:
        sizes = [pair.size for pair in self.run.pairs]
        lines = heading_rows("set", "activations", *sizes)
        for test in self.run.tests:
            for bits in (None, *BITS):
                cells = [self._gates_cell(pair, test, bits) for pair in self.run.pairs]
                lines.append(markdown_row(test.name, _bits_name(bits), *cells))
        return [*lines, "", "WER with gates less WER without, both at the same bits, in points."]

    def _gates_cell(self, pair: Pair, test: SetFacts, bits: int | None) -> str:
        plain, gated = (self.words(model, test, bits) for model in pair.models)
        return ABSENT if plain is None or gated is None else _interval(plain, gated)

    def _figures(self) -> list[str]:
        lines = ["## Figure 1: a head of the last decoder layer's self-attention", ""]
        shown = [*self.run.others, *(self.run.pairs[0].models if self.run.pairs else ())]
        for model in shown:
            record = self.outliers(model)
            if record is None:
                lines += [f"{model.name}: {ABSENT}", ""]
                continue
            name = f"{slug(model.name, 'attention')}.png"
            draw_attention(
                f"{model.name}: {record.module}", record.drawn_head(), self.folder / PICTURES / name
            )
            lines += [f"![{model.name}]({PICTURES}/{name})", ""]
        lines += ["## Figure 2: outliers by dimension", ""]
        for pair in self.run.pairs:
            lines += [*self._dimensions(pair), ""]
        return lines

    def _dimensions(self, pair: Pair) -> list[str]:
        records = [self.outliers(model) for model in pair.models]
        if None in records:
            return [f"{pair.plain.name} and {pair.gated.name}: {ABSENT}"]
        found = [record for record in records if record is not None]
        name = f"{slug(pair.plain.name, pair.gated.name, 'dimensions')}.png"
        panels = {
            f"{model.name}: {one.module}": one.shares
            for model, one in zip(pair.models, found, strict=True)
        }
        draw_outlier_dimensions(panels, self.folder / PICTURES / name)
        rows = [
            f"{model.name}: the two first dimensions hold {100 * _two_first(one.shares):.0f} % of "
            f"the outliers, which are {100 * one.outlier_share:.4f} % of the values."
            for model, one in zip(pair.models, found, strict=True)
        ]
        return [f"![{pair.size}]({PICTURES}/{name})", "", *rows]


def _two_first(shares: Sequence[tuple[int, float]]) -> float:
    return sum(share for _, share in shares[:2])


def _set_row(name: str, facts: SetFacts) -> str:
    return markdown_row(name, facts.clips, f"{facts.seconds / _HOUR_SECONDS:.2f}")


def _bits_name(bits: int | None) -> str:
    return "float" if bits is None else f"{bits} bits"


def _interval(first: WordRecord, second: WordRecord) -> str:
    return f"({points_of(difference_interval(first.words, second.words))})"
