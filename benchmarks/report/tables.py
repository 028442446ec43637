"""The tables of a bench's pages, as text: what the HTML page and the Markdown page both print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from speechquant.benchmarks.report import words
from speechquant.benchmarks.report.figures import (
    Candidate,
    Errors,
    Latency,
    ModelFigures,
    ReportFigures,
    Shape,
    Timed,
)
from speechquant.benchmarks.report.words import NONE, TIMES

MOST_OPEN_ROWS = 14  # of a table that few will read
FAILED, SKIPPED = "failed", "skipped"  # what stands in place of a figure


@dataclass(frozen=True)
class Mark:
    """A candidate in a table: its letter, its name, and the role that colours them."""

    key: str
    name: str
    role: str


@dataclass(frozen=True)
class Figure:
    """A figure in a table and what stands beside it: its interval, or its share."""

    value: str
    aside: str


Entry = str | Mark | Figure


@dataclass(frozen=True)
class Table:
    """A table of text; the first `text_columns` are words, the others figures.

    A folded one is long and is shown on demand.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    text_columns: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the way from waveform to text that is timed apart."""

    title: str
    of: Callable[[Latency], Timed | None]


WHOLE = Part("Waveform to text", lambda latency: latency.whole)
NETWORK = Part("The network alone", lambda latency: latency.network)
DEVICE = Part("The network alone, by the GPU's own events", lambda latency: latency.device)
PARTS = (WHOLE, NETWORK, DEVICE)


def mark(candidate: Candidate) -> Mark:
    """Return a candidate as an entry of a table."""
    return Mark(candidate.key, candidate.name, candidate.role)


def headline_table(model: ModelFigures) -> Table:
    """Return a row for each candidate: what it costs and what it gives."""
    where = f"median at {words.shape(model.headline)}" if model.headline else "median"
    heads = (
        "candidate", where, "times as fast as float", "WER", "WER minus float's, in points",
        "size", "precision", "load", "peak memory",
    )  # fmt: skip
    busy = "; the machine was busy, so the times are doubtful" if model.is_doubtful else ""
    return Table(
        f"{model.name}: {words.count(len(model.candidates), 'candidate')}, waveform to text, "
        f"with 95 % intervals{busy}",
        heads,
        tuple(_headline_row(one, model) for one in model.candidates),
    )


def _headline_row(one: Candidate, model: ModelFigures) -> tuple[Entry, ...]:
    latency = one.latency(model.headline)
    return (
        mark(one),
        words.duration(latency.whole.stats.p50) if latency else absence(one, model.headline),
        speed_up_entry(one, latency.whole if latency else None),
        words.percent(one.words.rate.rate) if one.words else NONE,
        _difference(one, one.words),
        _size(one),
        _precision(one),
        NONE if one.load_seconds is None else words.duration(one.load_seconds),
        words.gibibytes(one.peak_bytes),
    )


def _size(one: Candidate) -> Entry:
    if one.size_share is None or one.is_baseline:
        return words.megabytes(one.size_bytes)
    share = f"{words.percent(one.size_share, 0)} of float"
    return Figure(words.megabytes(one.size_bytes), share)


def _difference(one: Candidate, errors: Errors | None) -> Entry:
    if errors is None or one.is_baseline:
        return NONE
    found = errors.difference
    if found is None:
        return NONE
    return Figure(words.points(found.difference), words.span(found))


def _precision(one: Candidate) -> Entry:
    if one.integer_products is None:
        return one.precision or NONE
    integer, total = one.integer_products
    return Figure(one.precision or NONE, f"{integer} of {total} products INT8")


def absence(one: Candidate, shape: Shape | None) -> str:
    """Return what stands in place of a time on a shape."""
    if any((skipped.seconds, skipped.batch) == shape for skipped in one.skipped):
        return SKIPPED
    return FAILED if one.failure is not None else NONE


def speed_up_entry(one: Candidate, timed: Timed | None) -> Entry:
    """Return how many times as fast as float's a part is, with its interval."""
    if one.is_baseline and timed:
        return "1"
    found = timed.speed_up if timed else None
    if found is None:
        return NONE
    return Figure(f"{found.value:.2f}", f"{found.low:.2f} to {found.high:.2f}")


def median_table(model: ModelFigures, batch: int) -> Table:
    """Return the medians, a column for each length."""
    return by_length(
        model,
        batch,
        f"Median in ms, waveform to text{in_batches(batch)}",
        lambda _, latency: words.milliseconds(latency.whole.stats.p50),
    )


def speed_up_table(model: ModelFigures, batch: int) -> Table:
    """Return how many times as fast as float each candidate is, a column for each length."""
    return by_length(
        model,
        batch,
        f"Times as fast as float, with 95 % intervals{in_batches(batch)}",
        lambda one, latency: speed_up_entry(one, latency.whole),
    )


def in_batches(batch: int) -> str:
    """Return what a caption says of a batch size."""
    return f", in batches of {batch}" if batch > 1 else ""


def by_length(
    model: ModelFigures, batch: int, caption: str, text: Callable[[Candidate, Latency], Entry]
) -> Table:
    """Return a row for each candidate with a column for each length."""
    lengths = model.lengths(batch)
    rows = []
    for one in model.candidates:
        row = [
            text(one, latency)
            if (latency := one.latency((seconds, batch)))
            else absence(one, (seconds, batch))
            for seconds in lengths
        ]
        rows.append((mark(one), *row))
    return Table(caption, ("candidate", *map(words.length, lengths)), tuple(rows))


def spread_table(model: ModelFigures, part: Part) -> Table | None:
    """Return all that is said of each candidate on each shape, None where nothing was timed."""
    heads = (
        "clip", "candidate", "p50", "p90", "p99", "quartiles", "spread", "least to most", "runs",
        "outliers", *(("real-time factor",) if part is WHOLE else ()), "times as fast as float",
    )  # fmt: skip
    rows = tuple(
        _spread_row(one, latency, timed, part)
        for shape in model.shapes
        for one in model.candidates
        if (latency := one.latency(shape)) and (timed := part.of(latency))
    )
    if not rows:
        return None
    return Table(f"{part.title}, in ms: every shape", heads, rows, text_columns=2, folded=True)


def _spread_row(one: Candidate, latency: Latency, timed: Timed, part: Part) -> tuple[Entry, ...]:
    stats, ms = timed.stats, words.milliseconds
    factor = (f"{latency.real_time_factor:.4f}",) if part is WHOLE else ()
    seconds, batch = latency.shape
    return (
        words.length(seconds) if batch == 1 else f"{batch} {TIMES} {words.length(seconds)}",
        mark(one),
        ms(stats.p50),
        ms(stats.p90),
        ms(stats.p99),
        f"{ms(stats.lower_quartile)} to {ms(stats.upper_quartile)}",
        words.percent(stats.spread, 1),
        f"{ms(stats.least)} to {ms(stats.most)}",
        str(stats.runs),
        str(stats.outliers),
        *factor,
        speed_up_entry(one, timed),
    )


def throughput_table(model: ModelFigures, seconds: float) -> Table:
    """Return the seconds of audio done in a second, a column for each batch size."""
    rows = tuple(_throughput_row(one, seconds, model.batches) for one in model.candidates)
    caption = f"Seconds of audio in a second: clips of {words.length(seconds)} run together"
    return Table(caption, ("candidate", *_batch_heads(model)), rows)


def all_throughputs_table(model: ModelFigures) -> Table:
    """Return the same for every length."""
    rows = tuple(
        (words.length(seconds), *_throughput_row(one, seconds, model.batches))
        for seconds in sorted({length for length, _ in model.shapes})
        for one in model.candidates
        if any(latency.shape[0] == seconds for latency in one.latencies)
    )
    heads = ("clips of", "candidate", *_batch_heads(model))
    caption = "Seconds of audio in a second: every length"
    return Table(caption, heads, rows, text_columns=2, folded=True)


def _batch_heads(model: ModelFigures) -> tuple[str, ...]:
    return tuple(words.count(batch, "clip") for batch in model.batches)


def _throughput_row(one: Candidate, seconds: float, batches: Sequence[int]) -> tuple[Entry, ...]:
    found = [(batch, one.latency((seconds, batch))) for batch in batches]
    row = (
        f"{latency.throughput:,.1f}" if latency else absence(one, (seconds, batch))
        for batch, latency in found
    )
    return (mark(one), *row)


def error_table(model: ModelFigures, unit: str) -> Table | None:
    """Return the errors in "words" or "characters", None where nothing was scored."""
    heads = (
        "candidate", "error rate", "minus float's, in points", "substituted", "inserted",
        "deleted", "errors", f"of {unit}",
    )  # fmt: skip
    rows = tuple(
        _error_row(one, errors) for one in model.candidates if (errors := getattr(one, unit))
    )
    caption = f"Errors in {unit}, with 95 % intervals"
    return Table(caption, heads, rows) if rows else None


def _error_row(one: Candidate, errors: Errors) -> tuple[Entry, ...]:
    rate, interval = errors.rate, errors.interval
    return (
        mark(one),
        Figure(words.percent(rate.rate), f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"),
        _difference(one, errors),
        f"{rate.substitutions:,}",
        f"{rate.insertions:,}",
        f"{rate.deletions:,}",
        f"{rate.errors:,}",
        f"{rate.reference_length:,}",
    )


def size_table(model: ModelFigures) -> Table:
    """Return size, load time and memory."""
    heads = ("candidate", "size", "of float", "load", "peak memory", "after its largest run of")
    rows = tuple(
        (
            mark(one),
            words.megabytes(one.size_bytes),
            NONE if one.size_share is None else words.percent(one.size_share, 1),
            NONE if one.load_seconds is None else words.duration(one.load_seconds),
            words.gibibytes(one.peak_bytes),
            _shape_run(one.largest_shape),
        )
        for one in model.candidates
    )
    return Table("Size, load time and memory", heads, rows)


def _shape_run(shape: Shape | None) -> str:
    if shape is None:
        return NONE
    return (
        words.length(shape[0]) if shape[1] == 1 else f"{shape[1]} {TIMES} {words.length(shape[0])}"
    )


def product_table(model: ModelFigures) -> Table | None:
    """Return in which precision the layers with weights run, None where no backend says it."""
    counted = [one for one in model.candidates if one.products]
    if not counted:
        return None
    types = sorted({name for one in counted for name in one.products})
    rows: tuple[tuple[Entry, ...], ...] = tuple(
        (mark(one), *(str(one.products.get(name, 0)) for name in types)) for one in counted
    )
    caption = "Products with weights, as kernels, by what the backend multiplies"
    return Table(caption, ("candidate", *types), rows)


def kernel_table(model: ModelFigures) -> Table | None:
    """Return the time of each kind of kernel, None where no backend gives it."""
    rows = tuple(
        (
            mark(one),
            kernel.name,
            f"{kernel.calls:,}",
            words.milliseconds(kernel.seconds),
            words.percent(kernel.share, 1),
        )
        for one in model.candidates
        for kernel in one.kernels
    )
    if not rows:
        return None
    heads = ("candidate", "kernel", "calls", "ms a run", "share")
    return Table("Every kind of kernel", heads, rows, text_columns=2, folded=True)


def failed_table(figures: ReportFigures) -> Table | None:
    """Return what failed and why, None where nothing did."""
    rows = tuple(
        (mark(one), model.name, one.failure)
        for model in figures.models
        for one in model.candidates
        if one.failure is not None
    )
    heads = ("candidate", "model", "what ended its measurement")
    return Table("Failed", heads, rows, text_columns=3) if rows else None


def skipped_table(figures: ReportFigures) -> Table | None:
    """Return which runs were skipped, of whom and why, None where none were."""
    rows = tuple(row for model in figures.models for row in _skipped_rows(model))
    heads = ("runs of", "model", "candidates", "why")
    return Table("Skipped", heads, rows, text_columns=4) if rows else None


def _skipped_rows(model: ModelFigures) -> Iterable[tuple[Entry, ...]]:
    """Return a row for each shape and reason, with the letters of the candidates."""
    keys: dict[tuple[Shape, str], list[str]] = {}
    for one in model.candidates:
        for skipped in one.skipped:
            why = (skipped.seconds, skipped.batch), skipped.reason
            keys.setdefault(why, []).append(one.key)
    for (shape, reason), letters in keys.items():
        yield _shape_run(shape), model.name, ", ".join(letters), reason


def facts_table(caption: str, facts: Sequence[tuple[str, str]]) -> Table:
    """Return names and what they are."""
    return Table(caption, ("what", "value"), tuple(facts), text_columns=2)


def candidate_table(figures: ReportFigures) -> Table:
    """Return what each candidate is and what runs it."""
    rows = tuple(
        (
            mark(one),
            model.name,
            one.source or NONE,
            one.how or NONE,
            one.provider or NONE,
            one.precision or NONE,
        )
        for model in figures.models
        for one in model.candidates
    )
    heads = ("candidate", "model", "from", "how", "provider", "precision")
    return Table("The candidates", heads, rows, text_columns=6, folded=len(rows) > MOST_OPEN_ROWS)
