"""The page, from records alone: what has none is shown as absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speechquant.benchmarks.papers.kdq_tables.rows import (
    LAST_ROW,
    TEACHER,
    UNTRAINED,
    Entry,
    rounded_share,
    row_name,
)
from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row
from speechquant.benchmarks.papers.real_whisper.records import ABSENT, Records, key_of
from speechquant.benchmarks.papers.real_whisper.run import SetFacts
from speechquant.core.wer import EditCounts, ErrorRate

RUN = "run"
_HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Run:
    """The rows that were trained, the sets that they are tested on, and the machine."""

    machine: str
    threads: int
    entries: tuple[Entry, ...]
    tests: tuple[SetFacts, ...]

    def missing_from(self, records: Records) -> Iterator[tuple[Entry, SetFacts]]:
        """Yield what has no record yet."""
        for entry in self.entries:
            for test in self.tests:
                if records.read(Errors, errors_name(entry, test)) is None:
                    yield entry, test


@dataclass(frozen=True)
class Errors:
    """The errors of a checkpoint on a set, by clip."""

    words: tuple[EditCounts, ...]
    characters: tuple[EditCounts, ...]


def errors_name(entry: Entry, test: SetFacts) -> str:
    """Return the name of a record."""
    return f"errors-{key_of(entry.checkpoint.key, test.key)}"


@dataclass(frozen=True)
class Page:
    """A run and its records."""

    run: Run
    records: Records

    def lines(self) -> list[str]:
        """Return the page."""
        run = self.run
        sizes = sorted({e.decoder_layers for e in run.entries if e.number != TEACHER}, reverse=True)
        return [
            "# Whisper-KDQ",
            "",
            "Table 1 and Table 2 of Shao et al., Whisper-KDQ. Made by `python -m "
            f"speechquant.benchmarks.papers.kdq_tables` on {run.machine}, {run.threads} threads. "
            "Decoding is greedy, in float, with the weights as they were rounded in training. "
            "Texts are compared as Whisper's English normalizer writes them.",
            "",
            "Sizes are the paper's: float16, and one byte for each number in the matrices of the "
            "decoder and in the tied embedding where they are rounded; half of them where half of "
            "the layers are. The students' embedding is not rounded in training.",
            "",
            *heading_rows("set", "clips", "hours"),
            *(
                markdown_row(test.name, test.clips, f"{test.seconds / _HOUR_SECONDS:.2f}")
                for test in run.tests
            ),
            "",
            "## Table 1: models without training",
            "",
            *self._models(),
            "",
            *(line for layers in sizes for line in self._rows(layers)),
        ]

    def _models(self) -> list[str]:
        lines = heading_rows(
            "model", "encoder layers", "decoder layers", "width", "heads", "MiB", "CER in %"
        )
        for entry in self.run.entries:
            if entry.number > UNTRAINED:
                continue
            shape = entry.shape
            rates = "/".join(self._cell(entry, test, "characters") for test in self.run.tests)
            name = "teacher" if entry.number == TEACHER else f"student {entry.decoder_layers}"
            lines.append(
                markdown_row(
                    name, shape.encoder_layers, shape.decoder_layers, shape.width, shape.heads,
                    f"{shape.size_mib():.1f}", rates,
                )
            )  # fmt: skip
        return lines

    def _rows(self, layers: int) -> list[str]:
        tests = self.run.tests
        names = [f"{kind} {test.name}" for kind in ("CER", "WER") for test in tests]
        lines = [
            f"## Table 2: a decoder of {layers} layers",
            "",
            *heading_rows("row", "method", *names, "average CER", "MiB", "compression"),
        ]
        found = {e.number: e for e in self.run.entries if e.decoder_layers == layers}
        found |= {e.number: e for e in self.run.entries if e.number == TEACHER}
        for number in range(TEACHER, LAST_ROW + 1):
            lines.append(self._row(number, found.get(number), found.get(TEACHER)))
        return [*lines, "", "Error rates in %. Compression is by the teacher's size.", ""]

    def _row(self, number: int, entry: Entry | None, teacher: Entry | None) -> str:
        tests = self.run.tests
        if entry is None:
            return markdown_row(number, row_name(number), *[ABSENT] * (2 * len(tests) + 3))
        rates = [self._rate(entry, test, "characters") for test in tests]
        known = [rate for rate in rates if rate is not None]
        average = f"{sum(known) / len(known):.2f}" if len(known) == len(tests) else ABSENT
        size = entry.shape.size_mib(rounded_share(number))
        whole = teacher.shape.size_mib() if teacher else None
        cells = [
            self._cell(entry, test, kind) for kind in ("characters", "words") for test in tests
        ]
        return markdown_row(
            number, row_name(number), *cells, average, f"{size:.1f}",
            ABSENT if whole is None else f"{whole / size:.2f}",
        )  # fmt: skip

    def _cell(self, entry: Entry, test: SetFacts, kind: str) -> str:
        rate = self._rate(entry, test, kind)
        return ABSENT if rate is None else f"{rate:.2f}"

    def _rate(self, entry: Entry, test: SetFacts, kind: str) -> float | None:
        record = self.records.read(Errors, errors_name(entry, test))
        if record is None:
            return None
        counts = record.words if kind == "words" else record.characters
        return 100 * ErrorRate(counts).rate
