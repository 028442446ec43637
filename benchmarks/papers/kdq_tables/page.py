"""The page, from records alone: what has none is shown as absent."""

from __future__ import annotations

from dataclasses import dataclass

from speechquant.benchmarks.papers.kdq_tables.rows import (
    LAST_ROW,
    ORDERINGS,
    TEACHER,
    UNIFORM_ROWS,
    UNTRAINED,
    Entry,
    rounded_share,
    row_name,
)
from speechquant.benchmarks.papers.kdq_tables.run import PROVIDERS, Errors, Hearing, Run
from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row, points_of
from speechquant.benchmarks.papers.real_whisper.records import ABSENT, Records
from speechquant.benchmarks.papers.real_whisper.run import SetFacts
from speechquant.core.wer import difference_interval

_HOUR_SECONDS = 3600
_KINDS = ("characters", "words")


@dataclass(frozen=True)
class Page:
    """A run and its records."""

    run: Run
    records: Records

    def lines(self) -> list[str]:
        """Return the page."""
        run = self.run
        return [
            "# Whisper-KDQ",
            "",
            "Table 1 and Table 2 of Shao et al., Whisper-KDQ. Made by `python -m "
            f"speechquant.benchmarks.papers.kdq_tables` on {run.machine}, {run.threads} threads. "
            "Decoding is greedy, in float, with the weights as they were rounded in training. "
            "Texts are compared as Whisper's English normalizer writes them.",
            "",
            "Sizes are the paper's: float16, and one byte for each number in the matrices of the "
            "decoder and in the tied embedding where they are rounded; where half of the layers "
            "are (2 of 3), that share of both. The students' embedding is not rounded in training.",
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
            *(line for size in self._trained() for line in self._rows(*size)),
            *self._orderings(),
            *self._as_used(),
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

    def _rows(self, layers: int, seed: int) -> list[str]:
        tests = self.run.tests
        names = [f"{kind} {test.name}" for kind in ("CER", "WER") for test in tests]
        lines = [
            f"## Table 2: a decoder of {layers} layers, seed {seed}",
            "",
            *heading_rows("row", "method", *names, "average CER", "MiB", "compression"),
        ]
        found = self._of(layers, seed)
        is_first = seed == min(other for size, other in self._trained() if size == layers)
        for number in range(TEACHER, LAST_ROW + 1):
            # Of further seeds, only what was trained.
            if is_first or number in found:
                lines.append(self._row(number, found.get(number), found.get(TEACHER)))
        return [*lines, "", "Error rates in %. Compression is by the teacher's size.", ""]

    def _trained(self) -> list[tuple[int, int]]:
        """Return the decoder layers and the seeds of what was trained, the largest first."""
        found = {(e.decoder_layers, e.seed) for e in self.run.entries if e.number > UNTRAINED}
        return sorted(found, key=lambda size: (-size[0], size[1]))

    def _of(self, layers: int, seed: int) -> dict[int, Entry]:
        """Return the rows of a size and a seed, by number."""
        found = {e.number: e for e in self.run.entries if e.number == TEACHER}
        for entry in self.run.entries:
            # What is not trained has no seed.
            if entry.decoder_layers == layers and (entry.seed == seed or entry.number == UNTRAINED):
                found[entry.number] = entry
        return found

    def _row(self, number: int, entry: Entry | None, teacher: Entry | None) -> str:
        tests = self.run.tests
        if entry is None:
            return markdown_row(number, row_name(number), *[ABSENT] * (2 * len(tests) + 3))
        rates = [self._rate(entry, test, "characters") for test in tests]
        known = [rate for rate in rates if rate is not None]
        average = f"{sum(known) / len(known):.2f}" if len(known) == len(tests) else ABSENT
        size = entry.shape.size_mib(rounded_share(number, entry.decoder_layers))
        whole = teacher.shape.size_mib() if teacher else None
        cells = [self._cell(entry, test, kind) for kind in _KINDS for test in tests]
        return markdown_row(
            number, row_name(number), *cells, average, f"{size:.1f}",
            ABSENT if whole is None else f"{whole / size:.2f}",
        )  # fmt: skip

    def _orderings(self) -> list[str]:
        """Return how much fewer errors the row has that the paper finds better."""
        tests = self.run.tests
        names = [f"{kind} {test.name}" for kind in ("CER", "WER") for test in tests]
        lines = [
            "## The paper's orderings",
            "",
            "Differences in points, second row minus first, with the paired-bootstrap 95 % "
            "interval over clips: below 0 where it is as in the paper. What another seed would "
            "give is not in the interval.",
            "",
            *heading_rows("ordering", "rows", "decoder layers", "seed", *names),
        ]
        for name, worse, better in ORDERINGS:
            for layers, seed in self._trained():
                found = self._of(layers, seed)
                if worse not in found or better not in found:
                    continue
                first, second = found[worse], found[better]
                cells = [
                    self._difference(Hearing(first, test), Hearing(second, test), kind)
                    for kind in _KINDS
                    for test in tests
                ]
                lines.append(markdown_row(name, f"{worse}, {better}", layers, seed, *cells))
        return [*lines, ""]

    def _as_used(self) -> list[str]:
        """Return the errors of what `quantize` makes of the students with uniform weights."""
        run = self.run
        if run.calibration is None:
            return []
        names = [f"WER {test.name}, {p}" for test in run.tests for p in ("float", *PROVIDERS)]
        lines = [
            "## As used: W8A8",
            "",
            "`export` and `quantize`, with the integers and scales of the training; activations "
            f"are calibrated on {run.calibration.clips} clips ({run.calibration.name}). In "
            "brackets the difference from the simulation, whose activations are float, in points, "
            "with the paired-bootstrap 95 % interval.",
            "",
            *heading_rows("row", "decoder layers", "seed", *names, "MB"),
        ]
        for entry in run.entries:
            if entry.number in UNIFORM_ROWS and (cells := self._used_cells(entry)):
                place = (entry.number, entry.decoder_layers, entry.seed)
                lines.append(markdown_row(*place, *cells))
        return [*lines, ""]

    def _used_cells(self, entry: Entry) -> list[str]:
        """Return the cells of a row of what is used, none where nothing of it was measured."""
        cells, sizes = list[str](), list[int]()
        for test in self.run.tests:
            simulated = Hearing(entry, test)
            cells.append(self._cell(entry, test, "words"))
            for provider in PROVIDERS:
                used = Hearing(entry, test, provider, self.run.calibration)
                found = self.records.read(Errors, used.record)
                if found is None:
                    cells.append(ABSENT)
                    continue
                difference = self._difference(simulated, used, "words")
                cells.append(f"{100 * found.rate('words').rate:.2f} ({difference})")
                sizes.append(found.size_bytes)
        return [*cells, f"{sizes[0] / 1e6:.1f}"] if sizes else []

    def _difference(self, first: Hearing, second: Hearing, kind: str) -> str:
        before = self.records.read(Errors, first.record)
        after = self.records.read(Errors, second.record)
        if before is None or after is None:
            return ABSENT
        return points_of(difference_interval(before.rate(kind), after.rate(kind)))

    def _cell(self, entry: Entry, test: SetFacts, kind: str) -> str:
        rate = self._rate(entry, test, kind)
        return ABSENT if rate is None else f"{rate:.2f}"

    def _rate(self, entry: Entry, test: SetFacts, kind: str) -> float | None:
        record = self.records.read(Errors, Hearing(entry, test).record)
        return None if record is None else 100 * record.rate(kind).rate
