"""AdaRound over a whole model: one pass over the audio for as many layers as memory holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.adaround import (
    MAX_GRAM_BYTES,
    ConvWindow,
    GramAccumulator,
    as_matrices,
    from_matrices,
    new_gram,
    round_adaptively,
)
from speechquant.calibrators.collection import ActivationsOf
from speechquant.core.files import new_file
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.core.weights import ConstantWeight, Levels, channel_scales, read_levels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Input:
    """What a layer multiplies its weight with; layers that share it share the Gram matrix."""

    activation: str
    channels: int
    groups: int
    window: ConvWindow | None

    def gram(self) -> GramAccumulator | None:
        return new_gram(self.channels, groups=self.groups, window=self.window)

    @property
    def gram_bytes(self) -> int:
        width = self.channels // self.groups * (self.window.kernel if self.window else 1)
        return self.groups * width * width * np.dtype(np.float64).itemsize


def _input_of(weight: ConstantWeight) -> _Input:
    attributes = weight.attributes
    if weight.operator != "Conv":
        axis = 1 - weight.channel_axis
        return _Input(weight.activation, weight.values.shape[axis], 1, None)
    groups = int(attributes.get("group", 1))
    window = ConvWindow(
        kernel=weight.values.shape[2],
        stride=int(attributes.get("strides", [1])[0]),
        padding=tuple(attributes.get("pads", (0, 0))),
        dilation=int(attributes.get("dilations", [1])[0]),
    )
    return _Input(weight.activation, weight.values.shape[1] * groups, groups, window)


def _in_memory(inputs: Sequence[_Input]) -> Iterator[list[_Input]]:
    """Yield the inputs in groups whose Gram matrices fit into memory together."""
    group: list[_Input] = []
    for one in inputs:
        if group and sum(other.gram_bytes for other in (*group, one)) > MAX_GRAM_BYTES:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def adaround_levels(
    weights: Sequence[ConstantWeight],
    activations_of: ActivationsOf,
    clips: Sequence[LabelledClip],
    bits: int,
    saved: Path,
    on_step: OnStep | None = None,
) -> dict[str, Levels]:
    """Return the levels of every weight by name, kept in the file `saved` as they come.

    Weights whose Gram matrix is beyond MAX_GRAM_BYTES are left out, with a warning: they are then
    rounded to nearest. `on_step` counts weights.
    """
    done = read_levels(saved)
    inputs: dict[_Input, list[ConstantWeight]] = {}
    for weight in weights:
        if weight.name not in done:
            inputs.setdefault(_input_of(weight), []).append(weight)
    too_large = [key for key in inputs if key.gram_bytes > MAX_GRAM_BYTES]
    for key in too_large:
        names = ", ".join(weight.name for weight in inputs.pop(key))
        log.warning("warning: %s: too many inputs for AdaRound, rounded to nearest", names)
    for group in _in_memory(list(inputs)):
        grams = _collect(group, activations_of, clips)
        for key, gram in grams.items():
            for weight in inputs[key]:
                done[weight.name] = _round(weight, key, gram, bits)
                if on_step is not None:
                    on_step(len(done), len(weights))
            _save(done, saved)
    return done


def _collect(
    group: Sequence[_Input], activations_of: ActivationsOf, clips: Sequence[LabelledClip]
) -> dict[_Input, NDArray[np.float64]]:
    accumulators = {key: gram for key in group if (gram := key.gram()) is not None}
    for clip in clips:
        activations = activations_of(clip)
        for key, accumulator in accumulators.items():
            accumulator.add(activations[key.activation])
    return {key: accumulator.mean() for key, accumulator in accumulators.items()}


def _round(weight: ConstantWeight, key: _Input, gram: NDArray[np.float64], bits: int) -> Levels:
    transposed = weight.operator != "Conv" and weight.channel_axis == 0
    layout: dict[str, Any] = {"transposed": transposed}
    matrices = as_matrices(weight.values, weight.operator, groups=key.groups, **layout)
    scales = channel_scales(weight.values, weight.channel_axis, bits).reshape(key.groups, -1)
    rounded = np.stack(
        [
            round_adaptively(matrix, of_group, gram_of_group, bits)
            for matrix, of_group, gram_of_group in zip(matrices, scales, gram, strict=True)
        ]
    )
    levels = from_matrices(rounded, weight.operator, weight.values.shape, **layout)
    return np.ascontiguousarray(levels)


def _save(levels: dict[str, Levels], saved: Path) -> None:
    arrays: dict[str, Any] = dict(levels)
    with new_file(saved, force=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
