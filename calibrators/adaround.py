"""AdaRound: each weight rounded up or down, whichever suits the layer's output best.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". The paper draws
batches of inputs x; here their Gram matrix G = E[x x^T] stands for all of them, because the mean
squared error of a linear layer's output is e G e^T, e being the error of one channel's weights. So
there is no noise of batches, the channels are independent, and fewer steps suffice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import CalibrationError, OptionError
from speechquant.core.progress import OnStep
from speechquant.core.scales import largest_level
from speechquant.core.weights import Levels

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Of all groups of one layer. A matrix product of 4,096 inputs takes 128 MiB. The positional
# convolutions of the base and large models (16 groups of 6,144 and 8,192 inputs) would take 4.5 and
# 8 GiB.
MAX_GRAM_BYTES = 2**30
# What im2col copies at a time: 32 MiB of float32.
MAX_BLOCK_VALUES = 8 * 2**20

# The rectified sigmoid reaches 0 and 1 because it is stretched to -0.1 .. 1.1 and then clipped.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
# A variable so far out that its weight is rounded down and stays so.
FROZEN = -10.0
# Output channels optimised together: enough for a fast matrix product, few enough for the caches.
CHANNELS_AT_ONCE = 256


@dataclass(frozen=True)
class AdaRoundSettings:
    """How rounding is learned; raises OptionError for what makes no sense.

    `pull` weighs the regulariser (the paper's lambda) against the error of the output in units of
    scale^2 * mean(diag G), so that one value suits every layer. It is off in the share `warm_up` of
    the steps; then its exponent falls from `first_beta` to `last_beta`.
    """

    steps: int = 1000
    learning_rate: float = 1e-2
    pull: float = 1.0
    warm_up: float = 0.2
    first_beta: float = 20.0
    last_beta: float = 2.0

    def __post_init__(self) -> None:
        sensible = {
            "steps": self.steps >= 1,
            "learning_rate": self.learning_rate > 0,
            "pull": self.pull > 0,
            "warm_up": 0 <= self.warm_up < 1,
            "last_beta": 1 < self.last_beta <= self.first_beta,
        }
        for name, is_sensible in sensible.items():
            if not is_sensible:
                raise OptionError(f"AdaRound with {name} = {getattr(self, name)}: out of its range")

    def beta(self, step: int) -> float | None:
        """Return the regulariser's exponent at a step, None while it is off."""
        begin = self.warm_up * self.steps
        if step < begin:
            return None
        done = (step - begin) / max(self.steps - 1 - begin, 1.0)
        return self.first_beta + (self.last_beta - self.first_beta) * min(done, 1.0)


DEFAULTS = AdaRoundSettings()


def round_adaptively(
    weight: Floats,
    scales: NDArray[Any],
    gram: Doubles,
    bits: int,
    *,
    settings: AdaRoundSettings = DEFAULTS,
    on_step: OnStep | None = None,
) -> Levels:
    """Return the level of each weight: the one below or above weight / scale, within -Q..Q.

    `weight` is [outputs, inputs], `scales` [outputs], `gram` [inputs, inputs]. A channel whose
    output error would be larger than with rounding to nearest is rounded to nearest. `on_step` is
    called after each block of channels. Raises CalibrationError.
    """
    _check(weight, scales, gram)
    exact = weight.astype(np.float64) / np.asarray(scales, np.float64)[:, None]
    largest = largest_level(bits)
    below = np.clip(np.floor(exact), -largest, largest)
    above = np.clip(np.floor(exact) + 1, -largest, largest)
    nearest = np.clip(np.rint(exact), -largest, largest)
    unit = float(np.mean(np.diag(gram)))
    if unit > 0:  # else the layer hears nothing, and any rounding is as good
        up = _learn(below - exact, above > below, gram / unit, settings, on_step)
        learned = np.where(up, above, below)
        better = output_errors(learned - exact, gram) < output_errors(nearest - exact, gram)
        nearest = np.where(better[:, None], learned, nearest)
    return nearest.astype(np.int8) if bits <= 8 else nearest.astype(np.int16)


def output_errors(errors: Doubles, gram: Doubles) -> Doubles:
    """Return e G e^T of each row e of `errors` [outputs, inputs]: its mean squared output error."""
    products: Doubles = np.einsum("oi,oi->o", errors @ gram, errors)
    return products


def _learn(
    offset: Doubles,
    movable: Flags,
    gram: Doubles,
    settings: AdaRoundSettings,
    on_step: OnStep | None,
) -> Flags:
    # Single precision decides up or down well enough; what is decided is compared in double.
    small_gram = gram.astype(np.float32)
    up = np.zeros(offset.shape, np.bool_)
    for start in range(0, len(offset), CHANNELS_AT_ONCE):
        rows = slice(start, start + CHANNELS_AT_ONCE)
        up[rows] = _learn_block(
            offset[rows].astype(np.float32), movable[rows], small_gram, settings
        )
        if on_step is not None:
            on_step(min(rows.stop, len(offset)), len(offset))
    return up


def _learn_block(offset: Floats, movable: Flags, gram: Floats, settings: AdaRoundSettings) -> Flags:
    variable = _first_variable(offset, movable)
    adam = _Adam(variable.shape, settings.learning_rate)
    for step in range(settings.steps):
        sigmoid: Floats = np.reciprocal(1 + np.exp(-variable))
        raw = sigmoid * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        share = np.clip(raw, 0, 1)  # how far up each weight goes: h(V) in the paper
        free = raw == share
        if not free.any():
            break
        slope: Floats = 2 * ((offset + share) @ gram)
        beta = settings.beta(step)
        if beta is not None:
            slope += settings.pull * _regulariser_slope(share, beta)
        # The derivative of the rectified sigmoid, 0 where it is clipped.
        slope *= (STRETCH_HIGH - STRETCH_LOW) * sigmoid * (1 - sigmoid) * free
        variable -= adam.move(slope)
    return variable > 0  # where the sigmoid passes 1/2, the share does too


def _first_variable(offset: Floats, movable: Flags) -> Floats:
    """Return V with h(V) = the fraction that rounding down cuts off."""
    fraction = np.clip(-offset, 0, 1)
    sigmoid = (fraction - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    return np.where(movable, np.log(sigmoid / (1 - sigmoid)), FROZEN).astype(np.float32)


def _regulariser_slope(share: Floats, beta: float) -> Floats:
    """Return the derivative of 1 - |2h - 1|^beta."""
    centred = 2 * share - 1
    slope: Floats = np.power(np.abs(centred), beta - 1)
    return np.copysign(slope, -centred) * np.float32(2 * beta)


class _Adam:
    """Kingma and Ba 2015 with their constants."""

    def __init__(self, shape: tuple[int, ...], learning_rate: float) -> None:
        self._rate, self._steps = learning_rate, 0
        self._mean = np.zeros(shape, np.float32)
        self._square = np.zeros(shape, np.float32)

    def move(self, slope: Floats) -> Floats:
        self._steps += 1
        self._mean += 0.1 * (slope - self._mean)
        self._square += 0.001 * (slope * slope - self._square)
        mean = self._mean / (1 - 0.9**self._steps)
        square = self._square / (1 - 0.999**self._steps)
        move: Floats = self._rate * mean / (np.sqrt(square) + 1e-8)
        return move


def _check(weight: Floats, scales: NDArray[Any], gram: Doubles) -> None:
    outputs, inputs = weight.shape
    if scales.shape != (outputs,) or gram.shape != (inputs, inputs):
        raise CalibrationError(
            f"AdaRound: weight {weight.shape}, scales {scales.shape} and Gram {gram.shape} are not "
            "of one layer; give [outputs, inputs], [outputs] and [inputs, inputs] of one group"
        )
    if not (np.isfinite(gram).all() and np.isfinite(weight).all()):
        raise CalibrationError(
            "AdaRound: a weight or an activation of the layer is not finite; "
            "leave the layer in float"
        )
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise CalibrationError(
            "AdaRound: a scale is not above zero; give a channel of zeros any scale, such as 1"
        )


@dataclass(frozen=True)
class ConvWindow:
    """Which steps of its input's time axis each frame of a Conv sees."""

    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    def frames(self, x: Floats) -> Floats:
        """Return a view [channels, frames, kernel] of x [channels, time], padded."""
        padded = np.pad(x, ((0, 0), self.padding))
        span = (self.kernel - 1) * self.dilation + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=-1)
        return windows[:, :: self.stride, :: self.dilation]


def new_gram(
    channels: int, *, groups: int = 1, window: ConvWindow | None = None
) -> GramAccumulator | None:
    """Return a sum for a Conv with `window`, else a MatMul or Gemm; None beyond MAX_GRAM_BYTES."""
    inputs = channels // groups * (window.kernel if window else 1)
    if groups * inputs * inputs * np.dtype(np.float64).itemsize > MAX_GRAM_BYTES:
        return None
    return GramAccumulator(channels, groups, window)


class GramAccumulator:
    """Sums x x^T over everything that a layer multiplies its weights with; made by `new_gram`."""

    def __init__(self, channels: int, groups: int, window: ConvWindow | None) -> None:
        self._channels, self._window = channels, window
        self._inputs = channels // groups * (window.kernel if window else 1)
        self._sums = np.zeros((groups, self._inputs, self._inputs))
        self._rows = 0

    def add(self, x: Floats) -> None:
        """Take in an activation: [..., channels], or [batch, channels, time] of a Conv."""
        found = x.shape[-1] if self._window is None else x.shape[-2]
        if found != self._channels:
            raise CalibrationError(
                f"AdaRound: an activation {x.shape} for a layer of {self._channels} channels; "
                "give the tensor that feeds the layer"
            )
        if self._window is None:
            self._add_rows(x.reshape(-1, self._channels, 1))
        else:
            for clip in x:
                self._add_rows(self._window.frames(clip).transpose(1, 0, 2))

    def mean(self) -> Doubles:
        """Return E[x x^T] as [groups, inputs, inputs]; raises CalibrationError without data."""
        if self._rows == 0:
            raise CalibrationError(
                "AdaRound: no activations were seen; give at least one utterance"
            )
        return self._sums / self._rows

    def _add_rows(self, rows: Floats) -> None:
        """Add [rows, channels, kernel], of which a bounded block at a time is copied."""
        at_once = max(1, MAX_BLOCK_VALUES // self._inputs)
        groups = len(self._sums)
        for start in range(0, len(rows), at_once):
            block = rows[start : start + at_once]
            for group, part in enumerate(np.split(block, groups, axis=1)):
                seen = part.reshape(len(block), self._inputs)
                self._sums[group] += seen.T @ seen
        self._rows += len(rows)


def as_matrices(
    weight: NDArray[Any], op_type: str, *, groups: int = 1, transposed: bool = False
) -> NDArray[Any]:
    """Return a weight as [groups, outputs, inputs] in the order of inputs that the Grams have.

    A Conv's weight is [outputs, inputs / groups, kernel], a MatMul's or Gemm's [inputs, outputs],
    or [outputs, inputs] where `transposed` (Gemm's transB).
    """
    if op_type == "Conv":
        return weight.reshape(groups, len(weight) // groups, -1)
    outputs_first = weight if transposed else weight.T
    return outputs_first[np.newaxis]


def from_matrices(
    matrices: NDArray[Any], op_type: str, shape: tuple[int, ...], *, transposed: bool = False
) -> NDArray[Any]:
    """Return what `as_matrices` made of a weight of `shape`, in its own layout again."""
    if op_type == "Conv":
        return matrices.reshape(shape)
    matrix: NDArray[Any] = matrices[0]
    return matrix if transposed else matrix.T
