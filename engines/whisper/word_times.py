"""When each word is said: cross-attention and dynamic time warping, as in OpenAI's timing.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Attention = NDArray[np.float32]
Costs = NDArray[np.float64]
Decode = Callable[[Sequence[int]], str]

_FILTER_POSITIONS = 7  # of the median filter along time
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_BEFORE_A_WORD = "\"'“¡¿([{-"
_AFTER_A_WORD = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - Chinese too
_BROKEN = "\ufffd"  # what a part of a letter's bytes is decoded to


@dataclass(frozen=True)
class TokenTime:
    """The positions of the encoder between which a token is said."""

    start: int
    end: int


@dataclass(frozen=True)
class TimedText:
    """A word as it stands in the text, its spaces included, and when it is said."""

    text: str
    time: TokenTime


def token_times(attention: Attention) -> list[TokenTime]:
    """Return when each token is said, from what is paid to the positions after it is given.

    `attention` is [heads, tokens, positions], of tokens decoded one after the other.
    """
    starts = row_starts(-_evened(attention))
    # At a token the model attends to what the next one says, so its row begins where it ends.
    return [TokenTime(start, end) for start, end in zip([0, *starts], starts, strict=False)]


def _evened(attention: Attention) -> Costs:
    """Return the mean of the heads, each evened out over the tokens and smoothed along time."""
    total = np.zeros(attention.shape[1:])
    for head in attention:
        spread = head.std(axis=0, keepdims=True)
        total += _smoothed((head - head.mean(axis=0)) / np.where(spread > 0, spread, 1.0))
    return total / len(attention)


def _smoothed(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    beside = _FILTER_POSITIONS // 2
    if rows.shape[-1] <= beside:
        return rows
    padded = np.pad(rows, ((0, 0), (beside, beside)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _FILTER_POSITIONS, axis=-1)
    smoothed: NDArray[np.float32] = np.partition(windows, beside, axis=-1)[..., beside]
    return smoothed


_BOTH, _ROW, _COLUMN = range(3)  # what the cheapest path into a cell came on by


def row_starts(costs: Costs) -> list[int]:
    """Return the column at which the cheapest path from corner to corner enters each row."""
    rows, columns = costs.shape
    steps = _cheapest_steps(costs)
    starts = [0] * rows
    row, column = rows, columns
    while row > 0:
        starts[row - 1] = column - 1
        step = int(steps[row, column])
        row -= step != _COLUMN
        column -= step != _ROW
    return starts


def _cheapest_steps(costs: Costs) -> NDArray[np.int8]:
    """Return the step into each cell, all cells of a diagonal at once; both count from 1."""
    rows, columns = costs.shape
    totals = np.full((rows + 1, columns + 1), np.inf)
    totals[0, 0] = 0.0
    steps = np.full((rows + 1, columns + 1), _COLUMN, np.int8)
    for diagonal in range(2, rows + columns + 1):
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        both, above, before = (
            totals[row - 1, column - 1], totals[row - 1, column], totals[row, column - 1]
        )  # fmt: skip
        is_both = (both < above) & (both < before)
        is_row = (above < both) & (above < before)
        steps[row, column] = np.where(is_both, _BOTH, np.where(is_row, _ROW, _COLUMN))
        least = np.where(is_both, both, np.where(is_row, above, before))
        totals[row, column] = costs[row - 1, column - 1] + least
    return steps


def timed_words(
    tokens: Sequence[int], times: Sequence[TokenTime], decode: Decode, *, spaced: bool = True
) -> list[TimedText]:
    """Return the words of text tokens: split at spaces, with the punctuation beside them."""
    pieces = _letters(tokens, times, decode)
    words = _joined_to_words(pieces) if spaced else pieces
    return _with_following(_with_leading(words))


def _letters(tokens: Sequence[int], times: Sequence[TokenTime], decode: Decode) -> list[TimedText]:
    """Return the tokens' texts, those of a letter's bytes as one."""
    whole, offset, first = decode(tokens), 0, 0
    found = []
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[first:end])
        broken = text.find(_BROKEN)
        place = offset + broken
        if broken < 0 or place >= len(whole) or whole[place] == _BROKEN:
            found.append(TimedText(text, TokenTime(times[first].start, times[end - 1].end)))
            offset, first = offset + len(text), end
    return found


def _joined(left: TimedText, right: TimedText) -> TimedText:
    return TimedText(left.text + right.text, TokenTime(left.time.start, right.time.end))


def _joined_to_words(pieces: Sequence[TimedText]) -> list[TimedText]:
    words: list[TimedText] = []
    for piece in pieces:
        if not words or piece.text.startswith(" ") or piece.text.strip() in _PUNCTUATION:
            words.append(piece)
        else:
            words[-1] = _joined(words[-1], piece)
    return words


def _with_leading(words: Sequence[TimedText]) -> list[TimedText]:
    """Join what opens, such as a bracket after a space, to the word behind it."""
    joined: list[TimedText] = []
    for word in reversed(words):
        if joined and word.text.startswith(" ") and word.text.strip() in _BEFORE_A_WORD:
            joined[-1] = _joined(word, joined[-1])
        else:
            joined.append(word)
    return joined[::-1]


def _with_following(words: Sequence[TimedText]) -> list[TimedText]:
    """Join what closes, such as a comma, to the word in front of it."""
    joined: list[TimedText] = []
    for word in words:
        if joined and word.text in _AFTER_A_WORD and not joined[-1].text.endswith(" "):
            joined[-1] = _joined(joined[-1], word)
        else:
            joined.append(word)
    return joined
