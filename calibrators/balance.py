"""Balancing: channels with enormous values are divided, and the weights behind make up for it.

A few channels of an activation may reach a hundred times what the others do. One scale for all of
them then leaves the others a handful of levels. Dividing a channel of the activation by d and
multiplying its row of the weights by d leaves the product as it is. The divisors are powers of two,
so that the float function stays the same to the last bit. Where a channel is too large even for
that, because its row of the weights would then take all the levels, it stays in float.

Weights that were trained as integers are not rounded again: no channel is divided beside them, and
more of the large ones stay in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.baselines import asymmetric_scale, symmetric_scale
from speechquant.calibrators.channels import ChannelRanges
from speechquant.calibrators.histogram import Extent
from speechquant.calibrators.methods import only_zeros
from speechquant.core.errors import CalibrationError
from speechquant.core.scales import Bits, Scale, largest_level
from speechquant.core.weights import channel_scales

Floats = NDArray[np.float32]

# What is tried: the share of the largest magnitude that every channel is brought down to.
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06, 0.04, 0.03, 0.02)
KEPT_COUNTS = (1, 2, 4, 8)
SMALL_ERROR = 5e-4  # of products that need no channel in float
SMALL_TRAINED_ERROR = 2e-3  # the same where nothing can be divided: there are many such products


@dataclass(frozen=True)
class Quantizer:
    """How an activation and the weights beside it are rounded."""

    bits: Bits = Bits()  # noqa: RUF009 - frozen, so sharing it is safe
    symmetric: bool = False

    def scale_of(self, layer: str, extent: Extent) -> Scale:
        """Return the scale of an activation that takes all of `extent`."""
        bits = self.bits.activations
        if self.symmetric:
            return Scale(layer, symmetric_scale(extent.amax, bits), extent.amax)
        covered = extent.with_zero
        scale, zero_point = asymmetric_scale(*covered, bits)
        return Scale(layer, scale, covered.amax, zero_point)

    def rounded(self, values: Floats, extent: Extent) -> Floats:
        """Return the values as the integers of an activation stand for them."""
        row, largest = self.scale_of("", extent), largest_level(self.bits.activations)
        lowest, highest = -largest, largest
        if not self.symmetric:
            lowest, highest = 0, 2**self.bits.activations - 1
        levels = np.clip(np.rint(values / np.float32(row.scale)) + row.zero_point, lowest, highest)
        rounded: Floats = (levels - row.zero_point).astype(np.float32) * np.float32(row.scale)
        return rounded

    def rounded_weight(self, weight: Floats) -> Floats:
        """Return a weight [inputs, outputs] as its integers stand for it."""
        scales = channel_scales(weight, 1, self.bits.weights)
        rounded: Floats = np.rint(weight / scales) * scales
        return rounded


@dataclass(frozen=True, eq=False)
class Balance:
    """What is done to the channels of an activation, and the error of its products that it leaves.

    The channels of `kept` stay in float, in a small product of their own; the others are divided.
    """

    divisors: Floats
    kept: tuple[int, ...]
    error: float
    error_before: float

    @property
    def is_needed(self) -> bool:
        """Whether anything is done."""
        return bool(self.kept or (self.divisors > 1).any())


def divided(ranges: ChannelRanges, divisors: Floats, kept: Sequence[int] = ()) -> Extent:
    """Return the range of an activation whose channels are divided; those kept in float are 0."""
    factors = 1 / divisors
    factors[list(kept)] = 0
    return Extent(float((ranges.lowest * factors).min()), float((ranges.highest * factors).max()))


def divisors_for(amax: Floats, share: float) -> Floats:
    """Return the powers of two that bring every channel below a share of the largest magnitude."""
    bound = np.float32(share) * amax.max()
    if bound == 0:
        return np.ones_like(amax)
    exponents = np.ceil(np.log2(np.maximum(amax / bound, 1)))
    divisors: Floats = np.exp2(exponents).astype(np.float32)
    return divisors


def relative_error(found: Floats, expected: Floats, squares: Floats) -> float:
    """Return the mean over the rows of the squared error, each relative to `squares` of its row.

    A norm follows every product, so that a row counts as much as any other, however large it is.
    """
    errors = np.square(found - expected).sum(axis=1)
    is_heard = squares > 0
    return float((errors[is_heard] / squares[is_heard]).mean()) if is_heard.any() else 0.0


def best_balance(
    ranges: ChannelRanges,
    weights: Sequence[Floats],
    quantizer: Quantizer,
    *,
    may_keep: bool,
    may_divide: bool = True,
) -> Balance:
    """Return what makes the products with `weights`, [inputs, outputs], err least.

    Channels are kept in float, the largest first, only where `may_keep` allows it and each doubling
    of their number halves the error: they cost time. Without `may_divide` the weights stay as they
    are, to the last bit.
    """
    weight = np.concatenate(weights, axis=1)
    squares = np.square(ranges.rows @ weight).sum(axis=1)
    largest_first = np.argsort(-ranges.amax, kind="stable")
    small = SMALL_ERROR if may_divide else SMALL_TRAINED_ERROR
    best = _best_division(ranges, weight, quantizer, squares, may_divide=may_divide)
    for count in KEPT_COUNTS if may_keep else ():
        if best.error < small:
            break
        kept = np.sort(largest_first[:count])
        left = _without(ranges, kept)
        rest = np.delete(weight, kept, axis=0)
        found = _best_division(left, rest, quantizer, squares, may_divide=may_divide)
        if found.error > best.error / 2:
            continue
        divisors = np.insert(found.divisors, kept - np.arange(count), 1)
        best = Balance(divisors, tuple(kept.tolist()), found.error, best.error_before)
    return best


def _without(ranges: ChannelRanges, kept: NDArray[np.intp]) -> ChannelRanges:
    lowest, highest = np.delete(ranges.lowest, kept), np.delete(ranges.highest, kept)
    return ChannelRanges(lowest, highest, np.delete(ranges.rows, kept, axis=1))


def _best_division(
    ranges: ChannelRanges,
    weight: Floats,
    quantizer: Quantizer,
    squares: Floats,
    *,
    may_divide: bool,
) -> Balance:
    """Return the divisors under which `rows @ weight` errs least; without a gain all are 1.

    Without `may_divide` all are 1, and the weight is not rounded: it is at its levels.
    """
    expected = ranges.rows @ weight
    best: Balance | None = None
    tried: set[bytes] = set()
    for share in SHARES if may_divide else SHARES[:1]:
        divisors = divisors_for(ranges.amax, share)
        if divisors.tobytes() in tried:
            continue
        tried.add(divisors.tobytes())
        extent = divided(ranges, divisors)
        rows = quantizer.rounded(ranges.rows / divisors, extent)
        beside: Floats = weight * divisors[:, None]
        if may_divide:
            beside = quantizer.rounded_weight(beside)
        found = rows @ beside
        error = relative_error(found, expected, squares)
        if best is None or error < best.error:
            best = Balance(divisors, (), error, error if best is None else best.error_before)
    if best is None:
        raise CalibrationError("no share to bring channels down to")
    return best


def balanced_extents(
    ranges: Mapping[str, ChannelRanges],
    layers: Mapping[str, str],
    balances: Mapping[str, Balance],
) -> dict[str, Extent]:
    """Return the range of each activation of `layers`, its channels balanced.

    Raises CalibrationError for one that only ever saw zeros.
    """
    extents: dict[str, Extent] = {}
    for name, layer in layers.items():
        found = balances.get(name)
        seen = ranges[name]
        extents[name] = divided(seen, found.divisors, found.kept) if found else seen.extent
        if extents[name].amax == 0:
            raise only_zeros(name, layer)
    return extents
