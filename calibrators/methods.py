"""Scale tables that need nothing but statistics: the EMA scheme and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from speechquant.calibrators.baselines import (
    asymmetric_scale,
    entropy_amax,
    max_amax,
    mse_amax,
    percentile_amax,
    symmetric_scale,
)
from speechquant.calibrators.histogram import Extent, Histogram
from speechquant.calibrators.statistics import ActivationStatistics, TensorStatistics
from speechquant.core.errors import CalibrationError, OptionError, choice_among
from speechquant.core.graphs import INPUT
from speechquant.core.scales import (
    CHANNEL,
    TENSOR,
    Bits,
    Scale,
    ScaleTable,
    refuse_unknown_weight_scales,
)

STABLEQUANT, EMA = "stablequant", "ema"
BALANCED = "balanced"  # changes the graph too: calibrators/balance.py
DEFAULT_PERCENTILE = 99.99


@dataclass(frozen=True)
class MethodOptions:
    """A method, its width and what else it takes; raises OptionError where that makes no sense.

    `percentile` belongs to the method of that name; `symmetric=False` to ema and balanced; a scale
    for a whole weight, TENSOR, to those that need statistics alone.
    """

    method: str = STABLEQUANT
    bits: Bits = Bits()  # noqa: RUF009 - frozen, so sharing it is safe
    percentile: float = DEFAULT_PERCENTILE
    symmetric: bool = True
    weight_scales: str = CHANNEL

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"no method {self.method!r}; {choice_among(self.method, METHODS)}")
        refuse_unknown_weight_scales(self.weight_scales)
        if self.weight_scales == TENSOR and self.method not in FROM_STATISTICS:
            raise OptionError(
                f"{self.method} rounds weights by channels; leave --weight-scales {TENSOR} out, or "
                f"choose --method {' or '.join(FROM_STATISTICS)}"
            )
        if not 0 < self.percentile <= 100:
            raise OptionError(f"percentile {self.percentile}: give more than 0 and at most 100")
        if not self.symmetric and self.method not in (BALANCED, EMA):
            raise OptionError(
                f"{self.method} has no asymmetric form; choose --method {BALANCED} or {EMA}"
            )


def averaged_extent(seen: TensorStatistics) -> Extent:
    """Return the EMA of minimum and maximum, made to include 0."""
    averaged = seen.averaged_extent
    if averaged is None:
        raise CalibrationError("no batch of calibration data was seen; give data with clips in it")
    return averaged.with_zero


_AMAX_OF: dict[str, Callable[[TensorStatistics, MethodOptions], float]] = {
    EMA: lambda seen, options: averaged_extent(seen).amax,
    "max": lambda seen, options: max_amax(seen.histogram),
    "percentile": lambda seen, options: percentile_amax(seen.histogram, options.percentile),
    "entropy": lambda seen, options: entropy_amax(seen.histogram, options.bits.activations),
    "mse": lambda seen, options: mse_amax(seen.histogram, options.bits.activations),
}
FROM_STATISTICS = tuple(_AMAX_OF)  # the methods that need no more
METHODS = (BALANCED, STABLEQUANT, *FROM_STATISTICS)


def only_zeros(name: str, layer: str) -> CalibrationError:
    """Return the error of an activation that has no scale because it only ever was 0."""
    return CalibrationError(
        f"{name}: only ever saw zeros in the calibration data, so it has no scale; "
        f"calibrate on speech, or leave the layer in float with --keep-float {layer}"
    )


def require_live(statistics: ActivationStatistics, layers: Mapping[str, str]) -> None:
    """Raise CalibrationError for a tensor of `layers` that only ever saw zeros."""
    for name, layer in layers.items():
        if statistics.tensors[name].histogram.amax == 0.0:
            raise only_zeros(name, layer)


def table_from_statistics(
    statistics: ActivationStatistics,
    layers: Mapping[str, str],
    model_sha256: str,
    options: MethodOptions,
    placement: str = INPUT,
) -> ScaleTable:
    """Return the table of a method that needs no search and leaves the graph as it is.

    `layers` maps each tensor to be quantized to its layer. Raises CalibrationError for a tensor
    that only ever saw zeros.
    """
    require_live(statistics, layers)
    return ScaleTable(
        model_sha256=model_sha256,
        method=options.method,
        bits=options.bits,
        symmetric=options.symmetric,
        weight_scales=options.weight_scales,
        placement=placement,
        tensors={
            name: _scale_of(statistics.tensors[name], layer, options)
            for name, layer in layers.items()
        },
    )


def _scale_of(seen: TensorStatistics, layer: str, options: MethodOptions) -> Scale:
    bits = options.bits.activations
    amax = _AMAX_OF[options.method](seen, options)
    if options.symmetric:
        return Scale(layer, symmetric_scale(amax, bits), amax)
    scale, zero_point = asymmetric_scale(*averaged_extent(seen), bits)
    return Scale(layer, scale, amax, zero_point)


# What the paper's Table II compares StableQuant with, given its S and p; in percent, p is cut off.
_ADAPTIVE_AMAX_OF: dict[str, Callable[[Histogram, int, float], float]] = {
    "percentile": lambda seen, bits, cut: seen.quantile_edge(cut),
    "mse": mse_amax,
    "entropy": entropy_amax,
}
LAYER_ADAPTIVE = tuple(_ADAPTIVE_AMAX_OF)


def layer_adaptive_table(
    statistics: ActivationStatistics, choice: ScaleTable, method: str
) -> ScaleTable:
    """Return the table of a method of LAYER_ADAPTIVE with the S and p of StableQuant's `choice`.

    Of the layers of S the tail above the (100 - p)-th percentile is cut off before the method sees
    the histogram, of the others nothing is.
    """
    bits, cut = choice.bits.activations, choice.percentile or 0.0
    rows = {}
    for name, row in choice.tensors.items():
        own_cut = cut if row.layer in choice.clipped_layers else 0.0
        amax = _ADAPTIVE_AMAX_OF[method](statistics.tensors[name].histogram, bits, own_cut)
        rows[name] = Scale(row.layer, symmetric_scale(amax, bits), amax)
    return replace(choice, method=method, tensors=rows)
