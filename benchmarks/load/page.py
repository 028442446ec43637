"""The page about a server under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.load.clients import Answered, percentile_ms
from speechquant.benchmarks.load.differences import Difference
from speechquant.benchmarks.load.measures import Attacked, Ended, Loaded, LoadPlan
from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row

_COLUMNS = (
    "`--max-batch`", "`--workers`", "requests", "other texts", "lost", "p50 ms", "p95 ms",
    "real-time factor", "CPU s a second", "clips a batch",
    "MB at the start", "middle", "end", "peak",
)  # fmt: skip
_LEGEND = (
    "Each client asks again as soon as it is answered. Other texts: another text than the same "
    "engine writes of the clip alone. Lost: not answered with a text. Real-time factor: seconds by "
    "seconds of audio of all clients; CPU s a second: the server's CPU time by them. The memory at "
    "the start is that of the loaded model."
)


def introduction(plan: LoadPlan) -> Iterator[str]:
    """Yield the lines above the tables."""
    lengths = [clip.seconds for clip in plan.clips]
    yield "# The server under load"
    yield ""
    yield f"{describe_machine()}; provider {plan.provider}."
    yield ""
    yield (
        f"{plan.bundle.name}, {plan.clients} clients, {plan.seconds / 60:g} minutes a row, "
        f"{len(lengths)} clips of {min(lengths):.1f} to {max(lengths):.1f} s, "
        f"{sum(lengths) / len(lengths):.1f} s on average. {_LEGEND}"
    )
    yield ""


def load_table(rows: Sequence[Loaded]) -> Iterator[str]:
    """Yield a table with a row a setting."""
    yield from heading_rows(*_COLUMNS)
    for row in rows:
        done, audio = row.done, row.audio_seconds
        memory = row.memory
        yield markdown_row(
            row.setting.most,
            row.setting.workers,
            len(row.answers),
            len(row.differing),
            len(row.answers) - len(done),
            *(f"{percentile_ms(done, percent):.0f}" if done else "" for percent in (50, 95)),
            *(f"{taken / audio:.3f}" if done else "" for taken in (row.seconds, row.cpu_seconds)),
            f"{row.clips_a_batch:.1f}",
            *(
                f"{size / 1e6:.0f}"
                for size in (memory.start, memory.middle, memory.end, memory.peak)
            ),
        )
    lost = [one for row in rows for one in row.answers if one not in row.done]
    yield ""
    yield f"Lost: {counted(lost)}. Tracebacks in the log: {sum(row.tracebacks for row in rows)}."
    yield ""


def difference_lines(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield what the texts were that differ, and why."""
    if not differences:
        return
    unknown = sum(one.count for one in differences if one.batch is None)
    yield (
        f"Of the {sum(one.count for one in differences)} other texts the engine itself writes all "
        f"but {unknown} where the clip is heard in a batch: sums of floats depend on its size."
    )
    yield ""
    yield from heading_rows("alone", "answered", "times", "the engine writes it in a batch of")
    for one in differences:
        batch = "none" if one.batch is None else one.batch
        yield markdown_row(_cell(one.clip.text), _cell(one.text), one.count, batch)
    yield ""


def ended_line(ended: Ended) -> str:
    """Return what became of the requests at SIGTERM."""
    answered = [*ended.before, *ended.under_way, *ended.later]
    return (
        f"`kill -TERM` after {len(ended.before)} answers, with {len(ended.under_way)} requests "
        f"under way: these were answered {counted(ended.under_way)}; the {len(ended.later)} that "
        f"began later {counted(ended.later)}. Other texts: "
        f"{sum(one.differs for one in answered)}; exit code {ended.exit_code}; files left: "
        f"{len(ended.left_files)}."
    )


def attack_lines(attack: Attacked) -> Iterator[str]:
    """Yield a table of how hostile requests were answered."""
    yield (
        f"{attack.requests} hostile requests of seed 0: {attack.failures} answers of 500 and "
        f"above, {attack.tracebacks} tracebacks, {len(attack.left_files)} files left, peak "
        f"{attack.peak_bytes / 1e6:.0f} MB; the next client was "
        f"{'served' if attack.serves else 'not served'}."
    )
    yield ""
    yield from heading_rows("request", "answers")
    for name, counts in sorted(attack.statuses.items()):
        told = ", ".join(f"{status} x {count}" for status, count in sorted(counts.items()))
        yield markdown_row(name, told)
    yield ""


def counted(answers: Sequence[Answered]) -> str:
    """Return how often which status was answered."""
    counts = Counter("not at all" if one.status is None else str(one.status) for one in answers)
    return ", ".join(f"{status} x {count}" for status, count in sorted(counts.items())) or "nothing"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "nothing"
