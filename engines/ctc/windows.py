"""Clips too long for one call: windows that overlap, stitched in the middle of what both hear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.ctc import CtcSpec

Labels = NDArray[np.int64]

# Attention's scores of 30 s are a sixteenth of those of the longest clip that is heard at once.
WINDOW_SECONDS = 30.0
# What is heard on each side of a stitch and dropped: frames at an edge lack what comes beside them.
_EDGE_SECONDS = 3.0


@dataclass(frozen=True)
class Windows:
    """Windows of `frames` each, which are `samples`, that begin at the frames `starts`."""

    starts: tuple[int, ...]
    frames: int
    samples: int
    samples_per_frame: int

    def piece(self, wave: Waveform, index: int) -> Waveform:
        """Return what a window hears."""
        first = self.starts[index] * self.samples_per_frame
        return wave[first : first + self.samples]


def window_samples(spec: CtcSpec) -> int:
    """Return the samples of a window, no more than its frames see."""
    frames = spec.frames_of(round(WINDOW_SECONDS * spec.sample_rate_hz))
    return (frames - 1) * math.prod(spec.conv_strides) + spec.min_samples


def windows_over(spec: CtcSpec, samples: int) -> Windows:
    """Return the windows over a clip that is longer than one; the last ends where the clip does."""
    per_frame = math.prod(spec.conv_strides)
    length = window_samples(spec)
    frames = spec.frames_of(length)
    edge = round(_EDGE_SECONDS * spec.sample_rate_hz / per_frame)
    last = spec.frames_of(samples) - frames
    starts = (*range(0, last, frames - 2 * edge), last)
    return Windows(starts, frames, length, per_frame)


def only_window(spec: CtcSpec, samples: int) -> Windows:
    """Return the whole clip as one."""
    return Windows((0,), spec.frames_of(samples), samples, math.prod(spec.conv_strides))


def stitched(heard: Sequence[Labels], windows: Windows, blank: int) -> Labels:
    """Return the labels of the clip's frames as far as its first windows settle them."""
    kept: list[Labels] = []
    begin = 0
    for index, labels in enumerate(heard):
        start = windows.starts[index]
        end = start + len(labels)
        if index + 1 < len(windows.starts):
            ahead = windows.starts[index + 1] - start
            following = heard[index + 1] if index + 1 < len(heard) else None
            end = start + _stitch(labels, following, ahead, blank)
        kept.append(labels[begin - start : end - start])
        begin = end
    return np.concatenate(kept)


def _stitch(left: Labels, right: Labels | None, ahead: int, blank: int) -> int:
    """Return the frame of the left window at which the right one, `ahead` of it, goes on.

    It is near the middle of the overlap and between letters, which two windows may hear a frame
    apart. Before the right one is heard it is the earliest that it can be.
    """
    overlap = len(left) - ahead
    middle = ahead + overlap // 2
    if right is None:
        return middle - overlap // 4
    both_blank = (left[ahead:] == blank) & (right[:overlap] == blank)
    places = ahead + np.flatnonzero(both_blank)
    near = places[np.abs(places - middle) <= overlap // 4]
    return int(near[np.abs(near - middle).argmin()]) if len(near) else middle
