"""What the pages of a bench say of models that write token by token: first and later tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from speechquant.benchmarks.report import row_plots as rows
from speechquant.benchmarks.report import words
from speechquant.benchmarks.report.blocks import Block, Paragraph, Picture
from speechquant.benchmarks.report.figures import (
    Candidate,
    Latency,
    ModelFigures,
    Timed,
    TokenTimes,
)
from speechquant.benchmarks.report.tables import (
    Entry,
    Figure,
    Part,
    Table,
    absence,
    by_length,
    in_batches,
    mark,
    speed_up_entry,
    spread_table,
)


def _part(title: str, of: Callable[[TokenTimes], Timed]) -> Part:
    return Part(title, lambda latency: of(latency.tokens) if latency.tokens else None)


_ENCODER = _part("The encoder", lambda tokens: tokens.encoder)
_FIRST = _part("Waveform to the first token", lambda tokens: tokens.first_token)
_LATER = _part("Each token after the first", lambda tokens: tokens.later_token)


def token_blocks(model: ModelFigures) -> Iterable[Block]:
    """Return the section's part of a model, nothing where it does not write token by token."""
    if not model.writes_tokens or model.headline is None:
        return
    where, given = words.shape(model.headline), given_tokens(model)
    yield Paragraph(
        f"How many tokens a model writes hangs on its weights. So its parts are timed on the first "
        f"chunk of the audio with {words.count(given, 'token')} after the first that are given, "
        "the same for every candidate; latency from waveform to text is that of its own tokens, "
        "whose steps are counted below."
    )
    yield Picture(
        f"first-token-{model.slug}",
        f"Time to the first token of each candidate of {model.name}, split into its parts.",
        f"Waveform to the first token at {where}: medians of its parts.",
        lambda _: rows.figure_of_first_token(model),
    )
    yield Picture(
        f"later-token-{model.slug}",
        f"Time of each later token of each candidate of {model.name}.",
        f"Each token after the first at {where}: the median run, of each run the median token.",
        lambda _: rows.figure_of_later_token(model),
    )
    yield parts_table(model)
    if len(model.batches) > 1:
        yield rate_table(model, model.headline[0])
    yield own_work_table(model, model.headline[1])
    parts = (_ENCODER, _FIRST, _LATER)
    yield from (table for part in parts if (table := spread_table(model, part)))


def given_tokens(model: ModelFigures) -> int:
    """Return how many tokens after the first every candidate is given."""
    timed = (latency.tokens for one in model.candidates for latency in one.latencies)
    return next(tokens.given for tokens in timed if tokens)


def parts_table(model: ModelFigures) -> Table:
    """Return the medians of the parts at the headline's shape."""
    heads = (
        "candidate", "features", "encoder", "prefill", "first token", "times as fast as float",
        "each later token", "times as fast as float", "tokens in a second",
    )  # fmt: skip
    where = words.shape(model.headline) if model.headline else ""
    return Table(
        f"First and later tokens at {where}: medians in ms, with 95 % intervals of the ratios. The "
        "first token is features, encoder and prefill",
        heads,
        tuple(_parts_row(one, model) for one in model.candidates),
    )


def _parts_row(one: Candidate, model: ModelFigures) -> tuple[Entry, ...]:
    latency = one.latency(model.headline)
    tokens = latency.tokens if latency else None
    if tokens is None:
        return (mark(one), *[absence(one, model.headline)] * 8)
    ms = words.milliseconds
    return (
        mark(one),
        ms(tokens.features.stats.p50),
        ms(tokens.encoder.stats.p50),
        ms(tokens.prefill.stats.p50),
        ms(tokens.first_token.stats.p50),
        speed_up_entry(one, tokens.first_token),
        ms(tokens.later_token.stats.p50),
        speed_up_entry(one, tokens.later_token),
        f"{tokens.tokens_per_second:,.0f}",
    )


def rate_table(model: ModelFigures, seconds: float) -> Table:
    """Return the tokens in a second, a column for each batch size."""
    heads = ("candidate", *(words.count(batch, "clip") for batch in model.batches))
    rows_of = tuple(
        (mark(one), *(_rate(one, (seconds, batch)) for batch in model.batches))
        for one in model.candidates
    )
    caption = f"Tokens in a second, of all clips: clips of {words.length(seconds)} run together"
    return Table(caption, heads, rows_of)


def _rate(one: Candidate, shape: tuple[float, int]) -> Entry:
    latency = one.latency(shape)
    if latency is None or latency.tokens is None:
        return absence(one, shape)
    return f"{latency.tokens.tokens_per_second:,.0f}"


def own_work_table(model: ModelFigures, batch: int) -> Table:
    """Return what each candidate did with its own tokens, a column for each length."""
    return by_length(
        model,
        batch,
        "What each did from waveform to text, its tokens being its own: steps of the decoder, "
        "which give every clip of the batch a later token; chunks encoded; starts of the decoder, "
        "one for the chunks of a batch at each temperature, and, where languages are detected, one "
        "more for some of a batch, or for all of it a step for each other token of the prompt"
        + in_batches(batch),
        lambda _, latency: _own_entry(latency),
    )


def _own_entry(latency: Latency) -> Entry:
    tokens = latency.tokens
    if tokens is None:
        return words.NONE
    beside = (
        words.spanned_nouns(counts, noun)
        for counts, noun in ((tokens.chunks, "chunk"), (tokens.starts, "start"))
    )
    return Figure(words.spanned(tokens.steps), ", ".join(beside))
