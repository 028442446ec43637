"""Which tokens may come next, as Whisper's decoding has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speechquant.core.seq2seq import GenerationSpec

Scores = NDArray[np.float32]


def log_sum_exp(scores: Scores) -> NDArray[np.float64]:
    """Return along the last axis what to take from scores to get log probabilities."""
    largest = scores.max(axis=-1, keepdims=True)
    # Exponentials in float32, several times as fast, are exact enough; a sum of 50,000 is not.
    sums = np.exp(scores - largest).sum(axis=-1, dtype=np.float64)
    result: NDArray[np.float64] = largest[..., 0] + np.log(sums)
    return result


class TokenRules:
    """Rules out tokens by a score of minus infinity."""

    def __init__(self, spec: GenerationSpec, *, timestamps: bool) -> None:
        self._spec = spec
        self._timestamps = timestamps

    def apply(self, scores: Scores, heard: Sequence[Sequence[int]], *, is_first: bool) -> Scores:
        """Return the scores [clips, vocabulary] of the tokens after `heard`, by clip.

        With `is_first` they are of the first token after the prompt.
        """
        allowed = scores.copy()
        spec = self._spec
        if is_first:
            allowed[:, list(spec.suppressed_first)] = -np.inf
        allowed[:, list(spec.suppressed)] = -np.inf
        if self._timestamps and spec.first_timestamp is not None:
            allowed[:, spec.no_timestamps] = -np.inf
            for row, tokens in zip(allowed, heard, strict=True):
                self._keep_timestamps_in_order(row, tokens, spec.first_timestamp)
        return allowed

    def _keep_timestamps_in_order(self, row: Scores, tokens: Sequence[int], first: int) -> None:
        """Change a clip's scores: timestamps stand in pairs, but the last, and never go back."""
        is_time = [token >= first for token in tokens]
        was_time = bool(is_time) and is_time[-1]
        if was_time:
            if len(tokens) < 2 or is_time[-2]:
                row[first:] = -np.inf  # a pair is complete
            else:
                row[: self._spec.end] = -np.inf  # text cannot come between two of a pair
        times = [token for token in tokens if token >= first]
        if times:
            # The second of a pair may say the same time as the first, any other must be later.
            is_second = was_time and not (len(tokens) < 2 or is_time[-2])
            row[first : times[-1] + (0 if is_second else 1)] = -np.inf
        if not tokens:
            row[:first] = -np.inf
            if self._spec.latest_first_timestamp is not None:
                row[first + self._spec.latest_first_timestamp + 1 :] = -np.inf
        # All timestamps together against the likeliest other token.
        times_left = row[first:][np.isfinite(row[first:])]
        if len(times_left) and log_sum_exp(times_left) > row[:first].max():
            row[:first] = -np.inf
