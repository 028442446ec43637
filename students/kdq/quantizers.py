"""The levels that weights are rounded to: uniform, or sums of powers of two.

Both are whole numbers times one scale for each weight, the largest magnitude's level being the
largest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speechquant.core.scales import largest_level
from speechquant.students.kdq.settings import APOT, UNIFORM

BITS = 8
_BASE_BITS = 2  # of each term but the last, as in Li et al.


def uniform_magnitudes(bits: int) -> NDArray[np.int64]:
    """Return 0, 1 .. 2^(bits-1) - 1: equation 7 less its last level, which no code is left for."""
    return np.arange(largest_level(bits) + 1)


def apot_magnitudes(bits: int) -> NDArray[np.int64]:
    """Return the 2^(bits-1) sums of powers of two of equation 9, the smallest power being 1.

    One bit is the sign. The others are terms of two bits, which are zero or one of three powers,
    and where a bit is left, a term that is zero or one power. No two terms share a power. The
    order of powers is that of Li et al.'s code, which equation 9 is for an even number of bits.
    """
    terms, has_single = divmod(bits - 1, _BASE_BITS)
    first, second, third = (range(begin * terms, (begin + 1) * terms) for begin in range(3))
    exponents = [
        [high, middle, low + has_single]
        for high, middle, low in zip(first, second, third, strict=True)
    ]
    if has_single:
        exponents.append([2 * terms])
    smallest = max(max(powers) for powers in exponents)
    choices = [[0, *(1 << (smallest - power) for power in powers)] for powers in exponents]
    return np.array(sorted(sum(parts) for parts in product(*choices)))


_MAGNITUDES = {UNIFORM: uniform_magnitudes, APOT: apot_magnitudes}


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight as one byte a number: where its level stands in the table, and their scale."""

    codes: Tensor
    levels: Tensor
    scale: Tensor

    @property
    def values(self) -> Tensor:
        """The rounded weight."""
        return _looked_up(self.levels, self.codes.int()) * self.scale


def _looked_up(table: Tensor, indices: Tensor) -> Tensor:
    return table.index_select(0, indices.flatten()).view_as(indices)


class Quantizer:
    """Rounds weights to the nearest level of a kind: equation 10."""

    def __init__(self, kind: str, bits: int = BITS) -> None:
        magnitudes = _MAGNITUDES[kind](bits)
        self.kind = kind
        self.levels = torch.tensor(
            [*(-magnitudes[:0:-1]), *magnitudes], dtype=torch.float32
        )  # of whole numbers below 2^24
        # A border between two levels is a half or a whole number, so that a value's halves, rounded
        # up, tell its level: a table takes a tenth of the time of a search among the borders.
        borders = (self.levels[1:] + self.levels[:-1]) / 2
        self._most_halves = 2 * int(self.levels[-1])
        halves = torch.arange(-self._most_halves, self._most_halves + 1)
        self._codes = torch.bucketize(halves / 2, borders).to(torch.uint8)

    def rounded(self, weight: Tensor) -> Rounded:
        """Return the codes of a weight; one of zeros alone has scale 1."""
        weight = weight.detach()
        levels = self.levels.to(weight.device)
        largest = weight.abs().max()
        scale = torch.where(largest > 0, largest / levels[-1], torch.ones_like(largest))
        halves = (2 * (weight / scale)).ceil_().int() + self._most_halves
        halves.clamp_(0, 2 * self._most_halves)
        return Rounded(_looked_up(self._codes.to(weight.device), halves), levels, scale)


class RoundedWeight(nn.Module):
    """A parametrization that rounds a weight while `is_on`; gradients pass straight through."""

    is_on: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("is_on", torch.tensor(False))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the products see it."""
        if not self.is_on:
            return weight
        # To the bit the levels: what is added is zero and has the gradient.
        return self.quantizer.rounded(weight).values + (weight - weight.detach())
