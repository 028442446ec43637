"""The page on words, from records alone: a row that has none is shown as absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.papers.markdown import cell, change_cell, heading_rows, markdown_row
from speechquant.benchmarks.papers.real_whisper.layers_page import layer_lines
from speechquant.benchmarks.papers.real_whisper.records import ABSENT, Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.rows import (
    BOTH,
    DEV,
    DEV_METHODS,
    FLOAT,
    SCOPES,
    TEST,
    TEST_ROWS,
    TRANSFORMERS,
    Row,
    dev_row,
    planned,
)
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, Run, SetFacts
from speechquant.core.wer import difference_interval
from speechquant.recipes.experiment import Scored

_BYTES_PER_MB = 1e6
_HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Section:
    """The records of one checkpoint on one set."""

    run: Run
    checkpoint: CheckpointFacts
    name: str
    records: Records

    def read(self, row: Row) -> WordRecord | None:
        """Return a row's record, None where there is none."""
        place = planned(self.run, self.checkpoint, self.name, row)
        return self.records.read(WordRecord, place.record)

    def ran(self, row: Row) -> WordRecord | None:
        """Return the record of a row that has run."""
        record = self.read(row)
        return None if record is None or record.reason is not None else record


def page_of(run: Run, records: Records, folder: Path) -> list[str]:
    """Return the lines of the page; its pictures are drawn below `folder`, where it is to lie."""
    return [
        "# Real Whisper checkpoints at W8A8",
        "",
        *_opening(run),
        "",
        *word_lines(run, records),
        *layer_lines(run, records, folder),
    ]


def word_lines(run: Run, records: Records) -> list[str]:
    """Return the tables of words, of all checkpoints."""
    lines = []
    for checkpoint in run.checkpoints:
        lines += [f"## Words: {checkpoint.name} on {run.test.name}", ""]
        lines += [*words_table(Section(run, checkpoint, TEST, records)), ""]
    for checkpoint in run.checkpoints:
        section = Section(run, checkpoint, DEV, records)
        lines += [f"## Methods: {checkpoint.name} on {run.dev.name}", "", *_dev_tables(section), ""]
    return lines


def no_worse_share(first: WordRecord, second: WordRecord) -> float:
    """Return the share of the clips in which the second makes no more errors than the first."""
    pairs = list(zip(first.clips, second.clips, strict=True))
    return sum(after.errors <= before.errors for before, after in pairs) / len(pairs)


def words_table(section: Section) -> list[str]:
    """Return the rows of the test set."""
    lines = heading_rows(
        "candidate", "WER, %", "difference from its own float, points", "clips no worse",
        "MB", "of float32", "real-time factor",
    )  # fmt: skip
    notes = []
    for row in TEST_ROWS:
        record = section.read(row)
        if record is None or record.reason is not None:
            lines.append(markdown_row(row.name, *[ABSENT] * 6))
            if record is not None:
                notes.append(f"{row.name} did not run: {record.reason}")
            continue
        lines.append(markdown_row(row.name, *_cells(section, row, record)))
    return [*lines, *(f"\n{note}" for note in notes)]


def _cells(section: Section, row: Row, record: WordRecord) -> list[str]:
    beside = next(one for one in TEST_ROWS if one.name == row.beside)
    first = None if row is beside else section.ran(beside)
    cells = [f"{100 * record.words.rate:.2f}"]
    if first is None:
        own = "" if row is beside else ABSENT
        cells += [own, own]
    else:
        drop = difference_interval(first.words, record.words)
        cells += [change_cell(drop), f"{100 * no_worse_share(first, record):.1f} %"]
    cells.append(f"{record.size_bytes / _BYTES_PER_MB:.1f}")
    if row.runtime == TRANSFORMERS:
        cells.append("")  # a checkpoint may store its weights in half the bits
    else:
        whole = record if row is beside else first
        cells.append(
            f"{100 * record.size_bytes / whole.size_bytes:.0f} %" if whole is not None else ABSENT
        )
    return [*cells, f"{record.real_time_factor:.3f}"]


def _dev_tables(section: Section) -> list[str]:
    return [
        f"{_clips_text(section.run.dev)}. What a column does not name stays in float.",
        "",
        *_dev_table(section, {scope: {"scope": scope} for scope in SCOPES}),
        "",
        "The paper's two exemptions, the last output projection of the encoder's attention and "
        "what reads the encoder's output:",
        "",
        *_dev_table(section, {"both in float": {"exempt": True}, "neither": {}}),
    ]


def _dev_table(section: Section, columns: dict[str, dict[str, object]]) -> list[str]:
    lines = heading_rows("method", *columns)
    first = section.ran(FLOAT)
    in_float = ABSENT if first is None else f"{100 * first.words.rate:.2f}"
    lines.append(markdown_row("float", *[in_float] * len(columns)))
    for method in DEV_METHODS:
        rows = [
            dev_row(method, str(of.get("scope", BOTH)), exempt=bool(of.get("exempt")))
            for of in columns.values()
        ]
        lines.append(markdown_row(f"`{method}`", *(_dev_cell(section, first, row) for row in rows)))
    return lines


def _dev_cell(section: Section, first: WordRecord | None, row: Row) -> str:
    record = section.read(row)
    if record is None or first is None:
        return ABSENT
    if record.reason is not None:
        return f"{ABSENT}: {record.reason}"
    drop = difference_interval(first.words, record.words)
    return cell(Scored(record.words, drop, record.size_bytes))


def threads_text(run: Run) -> str:
    """Return how many threads each candidate has, as a sentence says it."""
    return "1 thread" if run.threads == 1 else f"{run.threads} threads"


def _opening(run: Run) -> list[str]:
    return [
        f"Made by `make real-whisper` on {run.machine}. Everything runs in {threads_text(run)}, "
        "one clip at a time, greedily, and a multilingual checkpoint is told that the language is "
        "English. Texts are compared as Whisper's English normalizer writes them. Brackets hold "
        "the paired-bootstrap 95 % interval of the difference over clips; a clip is no worse "
        "where it has no more errors than in float.",
        "",
        "Rows ran one after another, on a machine that may have had other work meanwhile. "
        "Compare speeds in [real-whisper-speed.md](real-whisper-speed.md), where candidates take "
        "turns. The size of a row is that of its folder.",
        "",
        *heading_rows("set", "name", "clips", "hours", "speakers"),
        *(
            markdown_row(
                use, facts.name, facts.clips, f"{facts.seconds / _HOUR_SECONDS:.2f}",
                _speakers_text(facts.speakers),
            )
            for use, facts in (
                ("test", run.test), ("development", run.dev), ("calibration", run.calibration)
            )
        ),
        "",
        _overlap_text(run),
    ]  # fmt: skip


def _clips_text(facts: SetFacts) -> str:
    return f"{facts.clips} clips, {facts.seconds / _HOUR_SECONDS:.2f} hours"


def _speakers_text(speakers: Sequence[str]) -> str:
    return f"{len(speakers)}: {', '.join(speakers)}" if speakers else "not told"


def _overlap_text(run: Run) -> str:
    if not run.test.speakers or not run.calibration.speakers or not run.dev.speakers:
        return "A set does not tell its speakers, so a test speaker may be in another set too."
    if run.heard_before:
        return f"Test speakers that are in another set too: {', '.join(run.heard_before)}."
    return "No test speaker was calibrated on, and none is in the development set."
