"""The page on speed, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row
from speechquant.benchmarks.papers.real_whisper.headline import headline_lines
from speechquant.benchmarks.papers.real_whisper.page import threads_text
from speechquant.benchmarks.papers.real_whisper.records import ABSENT, Records
from speechquant.benchmarks.papers.real_whisper.run import Run
from speechquant.benchmarks.papers.real_whisper.speed import (
    BASELINE,
    TOGETHER,
    SpeedRecord,
    Timed,
    speed_record_name,
)


def speed_page_of(run: Run, words: Run | None, records: Records, folder: Path) -> list[str]:
    """Return the lines of the page, which is to lie in `folder`; `words` is the run of words."""
    return [
        "# The speed of real Whisper checkpoints",
        "",
        f"Made by `make real-whisper-speed` on {run.machine}. The candidates are those of "
        "[real-whisper.md](real-whisper.md), and hear its test clips greedily, without timestamps.",
        "",
        *headline_lines(words, run, records, folder),
        *speed_lines(run, records),
    ]


def speed_lines(run: Run, records: Records) -> list[str]:
    """Return the tables of all checkpoints."""
    lines: list[str] = []
    for checkpoint in run.checkpoints:
        record = records.read(SpeedRecord, speed_record_name(run, checkpoint))
        lines += [f"## Speed: {checkpoint.name}", ""]
        lines += (
            [f"{ABSENT}: `make real-whisper-speed`"] if record is None else _tables(run, record)
        )
        lines.append("")
    return lines[:-1]


def _tables(run: Run, record: SpeedRecord) -> list[str]:
    lines = [
        f"Each candidate is a process of its own that holds its model, with {threads_text(run)}. "
        f"Candidates take turns clip by clip, with a pause before each call. The load before was "
        f"{record.load}. Seconds are the sums over the clips of a length of medians of "
        f"{record.repeats} interleaved rounds; brackets say how many times as fast as {BASELINE}. "
        f"Where {run.test.name} has no clip of a length, two of its clips are joined.",
        "",
        *length_table(record),
        "",
        f"{TOGETHER} clips together, {sum(record.together.audio_seconds):.1f} s of audio; "
        "faster-whisper with its BatchedInferencePipeline:",
        "",
        *_together_table(record.together),
    ]
    reasons = {**record.alone.reasons, **record.together.reasons}
    return [*lines, *(f"\n{name} did not run: {reason}" for name, reason in reasons.items())]


def length_table(record: SpeedRecord) -> list[str]:
    """Return the seconds by length, and of all clips."""
    names = list(record.alone.times)
    lines = heading_rows("length", "clips", *names)
    indices = range(len(record.lengths))
    for length in dict.fromkeys(record.lengths):
        own = [index for index in indices if record.lengths[index] == length]
        actual = mean(record.alone.audio_seconds[index] for index in own)
        lines.append(_row(f"{length} s ({actual:.1f} s)", record.alone, own))
    return [*lines, _row("all", record.alone, indices)]


def _row(title: str, timed: Timed, indices: Sequence[int]) -> str:
    cells = [_cell(timed, name, indices) for name in timed.times]
    return markdown_row(title, len(indices), *cells)


def _together_table(timed: Timed) -> list[str]:
    lines = heading_rows(*timed.times)
    return [*lines, markdown_row(*(_cell(timed, name, [0]) for name in timed.times))]


def _cell(timed: Timed, name: str, indices: Sequence[int]) -> str:
    def total(candidate: str) -> float:
        return sum(median(timed.times[candidate][index]) for index in indices)

    own = total(name)
    ratio = f" ({total(BASELINE) / own:.2f})" if BASELINE in timed.times else ""
    return f"{own:.2f} s{ratio}"
