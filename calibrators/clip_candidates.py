"""What StableQuant chooses among: one layer alone, and every percentile for the layers it clips."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.histogram import Histogram
from speechquant.calibrators.scale_search import search_scales
from speechquant.core.graphs import INPUT
from speechquant.core.scales import Bits, Scale, ScaleTable, largest_level
from speechquant.core.scoring import Trial

# P of the paper's Algorithm 1, in percent.
CLIP_PERCENTS = tuple(step / 100 for step in range(51))


@dataclass(frozen=True)
class Candidates:
    """The trials of one model at one width, from the histograms of its activations.

    `layers` maps each activation tensor to its layer; `float_layers` are those that are not to be
    quantized at all. `placement` says which activations these are.
    """

    model_sha256: str
    bits: Bits
    layers: Mapping[str, str]
    histograms: Mapping[str, Histogram]
    float_layers: tuple[str, ...] = ()
    placement: str = INPUT

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """The layers in the order of the graph."""
        return tuple(dict.fromkeys(self.layers.values()))

    @cached_property
    def _full_range(self) -> dict[str, float]:
        """S_c(0, 0) of each tensor."""
        bits = self.bits.activations
        return {
            name: float(search_scales(self.histograms[name], [0.0], bits, use_mse=False)[0])
            for name in self.layers
        }

    @cached_property
    def _least_error(self) -> dict[str, NDArray[np.float64]]:
        """S_c(p, 1) of each tensor for every p of CLIP_PERCENTS."""
        bits = self.bits.activations
        return {
            name: search_scales(self.histograms[name], CLIP_PERCENTS, bits, use_mse=True)
            for name in self.layers
        }

    def unquantized(self) -> Trial:
        """Return the float model."""
        return Trial(self._table({}), quantizes_weights=False, label="float")

    def layer_alone(self, layer: str) -> Trial:
        """Return the trial of stage 1: S_c(0, 0) for one layer, all else in float."""
        scales = {
            name: scale for name, scale in self._full_range.items() if self.layers[name] == layer
        }
        return Trial(self._table(scales), quantizes_weights=False, label=f"{layer} alone")

    def clipped(self, clipped_layers: Collection[str], percent: float) -> Trial:
        """Return the trial of stage 2: S_c(p, 1) for the clipped layers, S_c(0, 1) for the rest.

        The weights are quantized too: it is scored as it would be deployed.
        """
        place = CLIP_PERCENTS.index(percent)
        scales = {
            name: float(of_percent[place if self.layers[name] in clipped_layers else 0])
            for name, of_percent in self._least_error.items()
        }
        table = replace(
            self._table(scales),
            percentile=percent,
            clipped_layers=tuple(name for name in self.layer_names if name in clipped_layers),
            float_layers=self.float_layers,
        )
        return Trial(table, quantizes_weights=True, label=f"all layers, p = {percent:.2f}")

    def _table(self, scales: Mapping[str, float]) -> ScaleTable:
        highest = largest_level(self.bits.activations)
        return ScaleTable(
            model_sha256=self.model_sha256,
            method="stablequant",
            bits=self.bits,
            placement=self.placement,
            tensors={
                name: Scale(self.layers[name], scale, amax=scale * highest)
                for name, scale in scales.items()
            },
        )
