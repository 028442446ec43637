"""When the words of a clip end: the likeliest way through what a CTC head hears in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speechquant.zoo.models import token_ids

_BLANK = 0


def label_path(scores: NDArray[np.float32], labels: list[int]) -> NDArray[np.intp] | None:
    """Return the state of each frame on the likeliest path, None where the frames are too few.

    `scores` are log-probabilities [frames, labels]; state 2i + 1 is the i-th label, the even ones
    are the blanks around it.
    """
    states = np.full(2 * len(labels) + 1, _BLANK, np.intp)
    states[1::2] = labels
    # A blank between two labels may be left out unless they are the same.
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf, np.float32)
    best[:2] = scores[0, states[:2]]
    came_by = np.zeros((len(scores), len(states)), np.intp)
    ways = np.full((3, len(states)), -np.inf, np.float32)
    for frame in range(1, len(scores)):
        ways[0] = best
        ways[1, 1:] = best[:-1]
        ways[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        came_by[frame] = ways.argmax(0)
        best = ways.max(0) + scores[frame, states]
    last = len(states) - 2 + int(best[-1] > best[-2])
    if not np.isfinite(best[last]):
        return None
    path = np.empty(len(scores), np.intp)
    for frame in reversed(range(len(scores))):
        path[frame] = last
        last -= came_by[frame, last]
    return path


def word_ends(scores: NDArray[np.float32], text: str) -> list[float]:
    """Return where each word of `text` ends in frames, nothing where they are too few for it."""
    path = label_path(scores, token_ids(text))
    if path is None:
        return []
    spaces = [index for index, letter in enumerate(text) if letter == " "]
    # Between two words the path is in the space or in a blank beside it.
    between = [(path >= 2 * space) & (path <= 2 * space + 2) for space in spaces]
    return [*(float(np.flatnonzero(frames).mean() + 0.5) for frames in between), len(scores)]
