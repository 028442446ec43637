"""The range of an activation under which the products that read it err least.

The whole range spares the largest values and leaves the others few levels. Cut off, a value errs,
and so does every product that reads it. So both are weighed where they matter, in the products of a
sample of rows, each relative to its own size: a quiet frame counts as much as a loud one.

The size is that of what is read next: with the bias, and after the norm over time where one
follows. In a front end that leaves silence silent by a large bias, what is quieter than it does not
count. Without the bias these frames outweighed all others, and loud ones were cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from speechquant.calibrators.balance import Floats, Quantizer, relative_error
from speechquant.calibrators.histogram import Extent

# What is tried: each end is cut at a share of the largest magnitude.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06)


@dataclass(frozen=True, eq=False)
class NormOverTime:
    """A norm of each channel by its mean and deviation over time."""

    gain: Floats
    offset: Floats
    epsilon: float

    def of(self, rows: Floats) -> Floats:
        """Return rows [frames, channels] with the norm, the frames taken for all of time."""
        variances = np.var(rows, axis=0) + np.float32(self.epsilon)
        normed: Floats = (rows - rows.mean(axis=0)) * (self.gain / np.sqrt(variances)) + self.offset
        return normed


@dataclass(frozen=True, eq=False)
class ReadAs:
    """What becomes of products [rows, outputs] before they are read: a bias, and maybe a norm."""

    bias: Floats | float = 0.0
    norm: NormOverTime | None = None

    def of(self, products: Floats) -> Floats:
        """Return what is read."""
        added: Floats = products + self.bias
        return added if self.norm is None else self.norm.of(added)


PLAIN = ReadAs()


def least_error_extent(
    rows: Floats, weight: Floats, extent: Extent, quantizer: Quantizer, read_as: ReadAs = PLAIN
) -> Extent:
    """Return the range that serves best; among equals the largest.

    Rows are [rows, groups * inputs], a weight is [groups, inputs, outputs]; a product has one
    group.
    """
    expected = read_as.of(_products(rows, weight))
    squares = np.square(expected).sum(axis=1)
    rounded_weight = np.stack([quantizer.rounded_weight(group) for group in weight])
    best, least = extent, np.inf
    for tried in _tried(extent, quantizer):
        found = read_as.of(_products(quantizer.rounded(rows, tried), rounded_weight))
        error = relative_error(found, expected, squares)
        if error < least:
            best, least = tried, error
    return best


def _tried(extent: Extent, quantizer: Quantizer) -> Iterator[Extent]:
    """Yield the ranges that are tried, each asymmetric one with one level more below zero too.

    Most of what GELU gives lies between -0.17 and 0. Where a level is wider than twice that, the
    zero point is 0, all of it becomes 0, and every product errs to the same side.
    """
    for share in SHARES:
        limit = share * extent.amax
        cut = Extent(max(extent.minimum, -limit), min(extent.maximum, limit))
        yield cut
        if not quantizer.symmetric:
            row = quantizer.scale_of("", cut)
            lowest = -(row.zero_point + 1) * row.scale
            highest = 2**quantizer.bits.activations - 1
            yield Extent(lowest, lowest + highest * row.scale)


def _products(rows: Floats, weight: Floats) -> Floats:
    groups, inputs, _ = weight.shape
    by_group = rows.reshape(len(rows), groups, inputs).transpose(1, 0, 2)
    products: Floats = np.matmul(by_group, weight).transpose(1, 0, 2).reshape(len(rows), -1)
    return products
