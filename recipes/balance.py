"""From a float bundle and data to one whose channels are balanced, and the scale table for that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechquant.calibrators.balance import Balance, Quantizer, balanced_extents, best_balance
from speechquant.calibrators.calibrate import statistics_key
from speechquant.calibrators.channels import ChannelRanges, Window, collect_ranges
from speechquant.calibrators.histogram import Extent
from speechquant.calibrators.product_clip import PLAIN, NormOverTime, ReadAs, least_error_extent
from speechquant.calibrators.range_fit import MOST_BITS, Fit, fitted
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CTC
from speechquant.core.manifests import data_key
from speechquant.core.progress import Progress, no_progress
from speechquant.core.scales import ScaleTable
from speechquant.engines.balance import (
    ReadConvolution,
    ReadWeights,
    balanced_bundle,
    weights_by_activation,
)
from speechquant.engines.ctc.output_distance import OutputDistance
from speechquant.engines.graphs.channel_division import ChannelChange
from speechquant.engines.probes import open_probe
from speechquant.recipes.calibrate import CalibrationRequest, data_of
from speechquant.recipes.work import BALANCED_FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BalancedModel:
    """A float bundle with balanced channels, its table, and what balancing each activation did.

    `fit` says how far its ranges were fitted to the model's outputs, where that was asked for.
    """

    bundle: Bundle
    table: ScaleTable
    balances: Mapping[str, Balance]
    fit: Fit | None = None


def balance(
    request: CalibrationRequest, work: Path, progress: Progress = no_progress
) -> BalancedModel:
    """Balance the channels in one pass over the calibration data.

    `work` is a folder for the new bundle, and for what a killed run leaves to the next one.
    """
    method = request.method
    read = weights_by_activation(request.bundle, request.float_layers, method.bits.weights)
    quantizer = Quantizer(method.bits, symmetric=method.symmetric)
    ranges = _ranges(request, read, work, progress)
    with progress("balancing channels") as on_step:
        balances: dict[str, Balance] = {}
        for done, (name, reader) in enumerate(read.items(), start=1):
            if reader.weights:
                balances[name] = best_balance(
                    ranges[name],
                    reader.weights,
                    quantizer,
                    may_keep=reader.is_trained or not reader.follows_norm,
                    may_divide=not reader.is_trained,
                )
            if on_step is not None:
                on_step(done, len(read))
    changes = {
        name: ChannelChange(found.divisors, found.kept)
        for name, found in balances.items()
        if found.is_needed
    }
    log.info("channels balanced in %d of %d activations", len(changes), len(read))
    extents = balanced_extents(ranges, request.layers, balances)
    if _clips(request):
        extents = _clipped(extents, ranges, read, balances, quantizer)
    scales = {
        name: quantizer.scale_of(layer, extents[name]) for name, layer in request.layers.items()
    }
    bundle = balanced_bundle(request.bundle, work / BALANCED_FOLDER, changes)
    table = ScaleTable(
        model_sha256=bundle.model_sha256,
        method=method.method,
        bits=method.bits,
        tensors=scales,
        symmetric=method.symmetric,
        float_layers=request.float_layers,
        data=data_of(request),
    )
    fit = _fit(request, bundle, table, work, progress)
    return BalancedModel(bundle, fit.table if fit else table, balances, fit)


def _fit(
    request: CalibrationRequest, bundle: Bundle, table: ScaleTable, work: Path, progress: Progress
) -> Fit | None:
    """Move ranges until the outputs differ least on some of the clips, evenly spread."""
    if request.fit_clips is None:
        return None
    if table.bits.activations > MOST_BITS:
        log.warning(
            "warning: with %d bits no WER that was measured became lower by --fit-clips",
            table.bits.activations,
        )
    clips, count = request.clips, min(request.fit_clips, len(request.clips))
    chosen = [index * len(clips) // count for index in range(count)]
    key = data_key([table.key, *(request.clip_keys[index] for index in chosen)])[:16]
    with progress("fitting ranges to the outputs") as on_step:
        distance = OutputDistance(
            bundle, table, [clips[index] for index in chosen], request.threads
        )
        fit = fitted(table, distance, work / f"fit-{key}.json", on_step)
    log.info(
        "ranges of %d activations fitted, divergence %.4f -> %.4f",
        len(fit.moved),
        fit.before,
        fit.after,
    )
    return fit


def _clips(request: CalibrationRequest) -> bool:
    """Return whether ranges are cut: a CTC model reads waveforms, whose peaks are rare.

    A few enormous values carry a Whisper model, and none of them may be cut off.
    """
    return request.bundle.spec.task == CTC


def _clipped(
    extents: Mapping[str, Extent],
    ranges: Mapping[str, ChannelRanges],
    read: Mapping[str, ReadWeights],
    balances: Mapping[str, Balance],
    quantizer: Quantizer,
) -> dict[str, Extent]:
    """Return the ranges under which products err least, where what reads them is known."""
    clipped = dict(extents)
    for name, extent in extents.items():
        rows, reader, found = ranges[name].rows, read[name], balances.get(name)
        read_as = PLAIN
        if reader.convolution is not None:
            weight, read_as = reader.convolution.weight, _read_as(reader.convolution)
        elif found is not None:
            divisors = found.divisors.copy()
            rows = rows / divisors
            rows[:, list(found.kept)] = 0
            weight = (np.concatenate(reader.weights, axis=1) * divisors[:, None])[None]
            weight[:, list(found.kept)] = 0
        else:
            continue
        clipped[name] = least_error_extent(rows, weight, extent, quantizer, read_as)
    return clipped


def _read_as(convolution: ReadConvolution) -> ReadAs:
    norm = convolution.norm
    if norm is None:
        return ReadAs(convolution.bias)
    return ReadAs(convolution.bias, NormOverTime(norm.gain, norm.offset, norm.epsilon))


def _ranges(
    request: CalibrationRequest,
    read: Mapping[str, ReadWeights],
    work: Path,
    progress: Progress,
) -> dict[str, ChannelRanges]:
    windows = {
        name: Window(reader.convolution.steps, reader.convolution.stride)
        for name, reader in read.items()
        if reader.convolution is not None and _clips(request)
    }
    parts = [*request.clip_keys, *request.float_layers, *windows]
    key = statistics_key(request.bundle, data_key(parts))
    axes = {name: reader.channel_axis for name, reader in read.items()}
    with (
        open_probe(request.bundle, request.threads) as probe,
        progress("collecting the ranges of channels") as on_step,
    ):
        saved = work / f"channels-{key}.npz"
        return collect_ranges(
            probe.activations_of, axes, request.clips, saved, windows=windows, on_step=on_step
        )


def on_balanced(request: CalibrationRequest, balanced: BalancedModel) -> CalibrationRequest:
    """Return the request with the balanced bundle in the place of the one it names."""
    return replace(request, bundle=balanced.bundle)
