"""Batches of clips of about one length, and their samples in one array."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechquant.training.samples import SAMPLE_RATE_HZ, Sample, Sets, shares_of

if TYPE_CHECKING:
    import torch


def in_rows(waves: Sequence[NDArray[np.float32]], samples: int) -> NDArray[np.float32]:
    """Return each wave in a row of `samples`: silence behind it, or cut off."""
    rows = np.zeros((len(waves), samples), np.float32)
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave)] = wave[:samples]
    return rows


def batches(sets: Sets, batch_seconds: float, rng: random.Random) -> Iterator[list[Sample]]:
    """Yield batches of clips of about one length for ever, the sets mixed by their shares."""
    budget = int(batch_seconds * SAMPLE_RATE_HZ)
    shares = shares_of(sets)
    while True:
        pool = [rng.choice(rng.choices(sets, shares)[0][1]) for _ in range(2_000)]
        pool.sort(key=lambda sample: len(sample.wave) * rng.uniform(0.9, 1.1))
        groups: list[list[Sample]] = [[]]
        for sample in pool:
            longest = max(len(other.wave) for other in [*groups[-1], sample])
            if groups[-1] and longest * (len(groups[-1]) + 1) > budget:
                groups.append([])
            groups[-1].append(sample)
        rng.shuffle(groups)
        yield from groups


def collate(waves: list[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the waves padded with zeros, and their lengths in samples."""
    import torch

    lengths = [len(wave) for wave in waves]
    padded = in_rows(waves, max(lengths))
    return torch.from_numpy(padded), torch.tensor(lengths)
