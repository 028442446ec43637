"""How the pages of a bench say a number, and the sentences that they open with."""

from __future__ import annotations

from collections.abc import Sequence

from speechquant.benchmarks.report.figures import (
    Candidate,
    Errors,
    ModelFigures,
    ReportFigures,
    Shape,
    Timed,
    TokenTimes,
    fastest,
)
from speechquant.benchmarks.report.record import OURS, PEER
from speechquant.core.wer import DifferenceInterval, most_hidden

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
NO_BREAK, NONE = "\N{NO-BREAK SPACE}", "\N{EN DASH}"
_MS = 1e3
# What a share of float's size is called, where it is within a hundredth or so of it.
_SHARES = ((0.25, "a quarter"), (1 / 3, "a third"), (0.5, "half"))
_SHARE_SLACK = 0.015


def milliseconds(seconds: float) -> str:
    """Return milliseconds with three digits or more, without the unit."""
    value = seconds * _MS
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Return a time as text reads best, with its unit."""
    if seconds >= 9.995:
        return f"{seconds:,.1f}{NO_BREAK}s"
    return f"{milliseconds(seconds)}{NO_BREAK}ms" if seconds < 1 else f"{seconds:.2f}{NO_BREAK}s"


def megabytes(count: int | None) -> str:
    """Return millions of bytes, as disks count them."""
    if count is None:
        return NONE
    return f"{count / 1e6:,.{0 if count >= 99.95e6 else 1}f}{NO_BREAK}MB"


def gibibytes(count: int | None) -> str:
    """Return GiB, as memory is counted."""
    return NONE if count is None else f"{count / 2**30:.2f}{NO_BREAK}GiB"


def percent(share: float, digits: int = 2) -> str:
    """Return a share in percent."""
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def points(difference: float) -> str:
    """Return a difference of two rates in percentage points, with its sign."""
    text = f"{100 * difference:+.2f}".replace("-", MINUS)
    return "0.00" if text[1:] == "0.00" else text


def difference(value: DifferenceInterval | None) -> str:
    """Return a difference in points with its interval."""
    return NONE if value is None else f"{points(value.difference)} ({span(value)})"


def span(value: DifferenceInterval) -> str:
    """Return the interval of a difference in points."""
    if value.is_of_nothing:
        return "no clip differs"
    return f"{points(value.low)} to {points(value.high)}"


def length(seconds: float) -> str:
    """Return the length of a clip."""
    return f"{seconds:g}{NO_BREAK}s"


def shape(value: Shape) -> str:
    """Return a length and, where clips were run together, how many."""
    return length(value[0]) + (f" in batches of {value[1]}" if value[1] > 1 else "")


def count(number: int, noun: str) -> str:
    """Return a number and its noun in the right form."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def spanned(counts: Sequence[int]) -> str:
    """Return what was counted in every run, or the least and the most."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def spanned_nouns(counts: Sequence[int], noun: str) -> str:
    """Return the same with what was counted."""
    return f"{spanned(counts)} {noun}{'' if set(counts) == {1} else 's'}"


def listed(words: Sequence[str], joint: str = "and") -> str:
    """Return words as a sentence lists them."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def conclusions(figures: ReportFigures) -> list[str]:
    """Return what a reader should know who reads no further."""
    sentences = [sentence for model in figures.models for sentence in _of_model(model)]
    if not figures.models:
        sentences.append("The bench was given nothing to measure.")
    elif not figures.report.data.has_text:
        sentences.append("Latency only: the data has no texts.")
    elif not figures.has_accuracy and any(one.latencies for one in figures.candidates):
        sentences.append("Latency only: no candidate was scored.")
    return sentences


def _of_model(model: ModelFigures) -> list[str]:
    if model.headline is None:
        return [f"No speed of {model.name} was measured: {_why_nothing(model)}."]
    ours, peer = fastest(model, OURS), fastest(model, PEER)
    sentences = []
    if model.is_doubtful:
        sentences.append(
            f"The times of {model.name} are doubtful: other programs took "
            f"{percent(model.others_share, 0)} of the processors while {shape(model.headline)} was "
            "timed. Measure again on a machine that does nothing else."
        )
    if model.baseline is None:
        sentences.append(f"{model.name} has no float result to compare with.")
    if ours:
        sentences += [f"{ours.name} {_verdict(ours, model)}.", *_of_tokens(ours, model)]
    elif any(one.role == OURS for one in model.candidates):
        where = shape(model.headline)
        sentences.append(
            f"No bundle or engine of speechquant was timed on {model.name} at {where}."
        )
    if peer:
        sentences.append(f"The fastest peer, {peer.name}, {_verdict(peer, model)}.")
        sentences += _of_tokens(peer, model)
    if not ours and not peer and model.baseline:
        sentences.append(f"{model.baseline.name} {_verdict(model.baseline, model)}.")
        sentences += _of_tokens(model.baseline, model)
    return sentences


def _of_tokens(one: Candidate, model: ModelFigures) -> list[str]:
    """Return what is to be said of a candidate that writes token by token, else nothing."""
    tokens = _tokens_of(one, model)
    if tokens is None:
        return []
    sentences = []
    other = _tokens_of(model.baseline, model) if model.baseline else None
    if other and other.work != tokens.work:
        sentences.append(
            f"These are not times of the same work: it took {_work_of(tokens)}, float "
            f"{_work_of(other)}."
        )
    first, later = tokens.first_token, tokens.later_token
    sentences.append(
        f"Its first token is there after {duration(first.stats.p50)}{_as_fast(first)}, each later "
        f"one after {duration(later.stats.p50)}{_as_fast(later)}."
    )
    return sentences


def _work_of(tokens: TokenTimes) -> str:
    counts = {"step": tokens.steps, "chunk": tokens.chunks, "start": tokens.starts}
    return listed([spanned_nouns(values, noun) for noun, values in counts.items()])


def _tokens_of(one: Candidate, model: ModelFigures) -> TokenTimes | None:
    latency = one.latency(model.headline)
    return latency.tokens if latency else None


def _as_fast(timed: Timed) -> str:
    return f" ({timed.speed_up.value:.2f} times as fast as float)" if timed.speed_up else ""


def _why_nothing(model: ModelFigures) -> str:
    failed = sum(one.failure is not None for one in model.candidates)
    if failed == len(model.candidates):
        few = {1: "its only candidate failed", 2: "both candidates failed"}
        return few.get(failed, f"all {failed} candidates failed")
    if any(one.skipped for one in model.candidates):
        return "every length was skipped"
    return "there are no runs"


def _verdict(one: Candidate, model: ModelFigures) -> str:
    clauses = [_speed_clause(one, model)]
    if one.size_share is not None and not one.is_baseline:
        clauses.append(_size_clause(one.size_share))
    if one.words:
        clauses.append(f"and {_error_clause(one.words)}")
    elif len(clauses) == 2:
        return " and ".join(clauses)
    return ", ".join(clauses) if len(clauses) == 3 else " ".join(clauses)


def _speed_clause(one: Candidate, model: ModelFigures) -> str:
    latency = one.latency(model.headline)
    if latency is None or model.headline is None:
        return "was not timed"
    where, speed_up = shape(model.headline), latency.whole.speed_up
    if speed_up is None:
        return f"takes {duration(latency.whole.stats.p50)} for {where}"
    interval = f"({speed_up.low:.2f} to {speed_up.high:.2f})"
    if model.is_doubtful:
        ratio = f"{speed_up.value:.2f} times as fast as float at {where} {interval}"
        return f"was {ratio} on a busy machine"
    if speed_up.low <= 1 <= speed_up.high:
        return f"is as fast as float at {where}, as far as was measured {interval}"
    if speed_up.value >= 1:
        return f"is {speed_up.value:.2f} times as fast as float at {where} {interval}"
    slower = f"({1 / speed_up.high:.2f} to {1 / speed_up.low:.2f})"
    return f"takes {1 / speed_up.value:.2f} times as long as float at {where} {slower}"


def _size_clause(share: float) -> str:
    for near, words in _SHARES:
        if abs(share - near) <= _SHARE_SLACK:
            return f"is {words} of its size"
    if abs(share - 1) <= _SHARE_SLACK:
        return "is as large"
    return f"is {percent(share, 0)} of its size"


def _error_clause(errors: Errors) -> str:
    found = errors.difference
    if found is None:
        return f"gets {percent(errors.rate.rate)} of the words wrong"
    apart = points(abs(found.difference)).lstrip("+")
    way = "higher" if found.difference > 0 else "lower"
    said = "the same" if apart == "0.00" else f"{apart} points {way}"
    return f"its word error rate is {said} ({span(found)}){_hidden(errors, found)}"


def _hidden(errors: Errors, found: DifferenceInterval) -> str:
    """Return how large a loss the clips may hide, nothing where the difference is certain."""
    if found.is_certain:
        return ""
    most = points(most_hidden(found, errors.rate)).lstrip("+")
    if most == "0.00":
        return ""
    counted = f"{count(len(errors.rate.clips), 'clip')} of {errors.rate.reference_length:,} words"
    return f": {counted} could hide a loss of {most} points"
