"""A WavLM's convolutions that begin as a bank of filters.

Whisper hears the energies of bands. Convolutions over ten samples take weeks to learn what a band
is; here the first one has the filters from the start, 25 ms long, and the second one sums them to
mel bands. Both go on learning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FILTER_SAMPLES, HOP_SAMPLES = 400, 160
FILTERS = 170  # centre frequencies
PHASES = 3  # cosines a third of a turn apart: what GELU makes of them sums to an energy
CONSTANTS = 2  # channels that hear nothing: a layer norm with them leaves silence silent
CHANNELS = FILTERS * PHASES + CONSTANTS
_SAMPLE_RATE_HZ = 16_000
# Below, filters stand as close as 25 ms can tell them apart.
_EVEN_TO_HZ, _EVEN_STEP_HZ = 4_000, 40
# What a constant channel holds, where a filter holds one in common speech.
_CONSTANT = 3.0
# The sums of a band less these: several bends are what a logarithm is made of.
_BENDS = (0.0, 0.2, 0.6, 1.5)
_RIDGE = 1e-3
MEL_BANDS = 80
SUMS = MEL_BANDS * len(_BENDS)


def centres_hz() -> NDArray[np.float64]:
    """Return the centre frequency of each filter."""
    even = np.arange(_EVEN_STEP_HZ, _EVEN_TO_HZ + 1, _EVEN_STEP_HZ, dtype=np.float64)
    above = np.linspace(_EVEN_TO_HZ, _SAMPLE_RATE_HZ / 2, FILTERS - len(even) + 2)[1:-1]
    return np.concatenate([even, above])


def filters() -> NDArray[np.float64]:
    """Return a Hann window of each frequency and phase, [filters, phases, samples]."""
    times = (np.arange(FILTER_SAMPLES) - (FILTER_SAMPLES - 1) / 2) / _SAMPLE_RATE_HZ
    phases = 2 * np.pi * np.arange(PHASES) / PHASES
    turns = 2 * np.pi * centres_hz()[:, None, None] * times
    bank: NDArray[np.float64] = np.hanning(FILTER_SAMPLES) * np.cos(turns + phases[:, None])
    return bank


def sums_of_bands(mel_filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of each filter each mel band takes, [bands, filters], each sum one.

    `mel_filters` is [frequencies from 0 to half the rate, bands].
    """
    grid = np.linspace(0, _SAMPLE_RATE_HZ / 2, len(mel_filters))
    taken = np.stack([np.interp(centres_hz(), grid, band) for band in mel_filters.T])
    # A band between two filters takes the nearest.
    peaks = grid[mel_filters.argmax(0)]
    empty = taken.sum(1) == 0
    nearest = np.abs(centres_hz()[None] - peaks[:, None]).argmin(1)
    taken[empty, nearest[empty]] = 1
    shares: NDArray[np.float64] = taken / taken.sum(1, keepdims=True)
    return shares


def hear_in_bands(student: Any, waves: Any, mel_filters: NDArray[np.float64]) -> None:
    """Let the student's first two convolutions begin as filters and mel bands.

    A filter gives one, as a root mean square, over `waves`, [clips, samples].
    """
    import torch

    first, second = student.wavlm.feature_extractor.conv_layers[:2]
    bank = torch.from_numpy(filters()).float()
    windows = waves.unfold(1, FILTER_SAMPLES, HOP_SAMPLES).flatten(0, 1)
    for rows in bank:
        rows /= (windows @ rows.T).square().mean().sqrt()
    first.conv.weight.data.zero_()
    first.conv.bias.data.zero_()
    first.conv.weight.data[: FILTERS * PHASES, 0] = bank.flatten(0, 1)
    first.conv.bias.data[FILTERS * PHASES :] = _CONSTANT
    shares = torch.from_numpy(sums_of_bands(mel_filters)).float()
    sums = second.conv.weight.data[:SUMS]
    sums.zero_()
    sums[:, : FILTERS * PHASES, 0] = shares.repeat_interleave(PHASES, 1).repeat(len(_BENDS), 1)
    second.conv.bias.data[:SUMS] = -torch.tensor(_BENDS).repeat_interleave(MEL_BANDS)


def fit_projection(student: Any, waves: Any, stem: Any) -> None:
    """Let the projection behind the convolutions give what is nearest to `stem`.

    `waves` are [clips, samples], `stem` [clips, frames, width].
    """
    import torch

    projection = student.wavlm.feature_projection
    with torch.no_grad():
        hidden = student.wavlm.feature_extractor(waves).transpose(1, 2)
        rows = projection.layer_norm(hidden).flatten(0, 1)
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
        square = rows.T @ rows
        square.diagonal().add_(_RIDGE * square.diagonal().mean())
        solved = torch.linalg.solve(square, rows.T @ stem.flatten(0, 1).double()).float()
        projection.projection.weight.copy_(solved[:-1].T)
        projection.projection.bias.copy_(solved[-1])
