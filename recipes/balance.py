"""From a float bundle and data to one whose channels are balanced, and the scale table for that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from speechquant.calibrators.balance import Balance, Quantizer, balanced_scales, best_balance
from speechquant.calibrators.calibrate import statistics_key
from speechquant.calibrators.channels import ChannelRanges, collect_ranges
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import data_key
from speechquant.core.progress import Progress, no_progress
from speechquant.core.scales import ScaleTable
from speechquant.engines.balance import ReadWeights, balanced_bundle, weights_by_activation
from speechquant.engines.graphs.channel_division import ChannelChange
from speechquant.engines.probes import open_probe
from speechquant.recipes.calibrate import CalibrationRequest, data_of
from speechquant.recipes.work import BALANCED_FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BalancedModel:
    """A float bundle with balanced channels, its table, and what balancing each activation did."""

    bundle: Bundle
    table: ScaleTable
    balances: Mapping[str, Balance]


def balance(
    request: CalibrationRequest, work: Path, progress: Progress = no_progress
) -> BalancedModel:
    """Balance the channels in one pass over the calibration data.

    `work` is a folder for the new bundle, and for what a killed run leaves to the next one.
    """
    read = weights_by_activation(request.bundle, request.float_layers)
    method = request.method
    quantizer = Quantizer(method.bits, symmetric=method.symmetric)
    ranges = _ranges(request, read, work, progress)
    with progress("balancing channels") as on_step:
        balances: dict[str, Balance] = {}
        for done, (name, reader) in enumerate(read.items(), start=1):
            if reader.weights:
                balances[name] = best_balance(
                    ranges[name], reader.weights, quantizer, may_keep=not reader.follows_norm
                )
            if on_step is not None:
                on_step(done, len(read))
    changes = {
        name: ChannelChange(found.divisors, found.kept)
        for name, found in balances.items()
        if found.is_needed
    }
    log.info("channels balanced in %d of %d activations", len(changes), len(read))
    scales = balanced_scales(ranges, request.layers, balances, quantizer)
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
    return BalancedModel(bundle, table, balances)


def _ranges(
    request: CalibrationRequest,
    read: Mapping[str, ReadWeights],
    work: Path,
    progress: Progress,
) -> dict[str, ChannelRanges]:
    key = statistics_key(request.bundle, data_key([*request.clip_keys, *request.float_layers]))
    axes = {name: reader.channel_axis for name, reader in read.items()}
    with (
        open_probe(request.bundle, request.threads) as probe,
        progress("collecting the ranges of channels") as on_step,
    ):
        saved = work / f"channels-{key}.npz"
        return collect_ranges(probe.activations_of, axes, request.clips, saved, on_step=on_step)


def on_balanced(request: CalibrationRequest, balanced: BalancedModel) -> CalibrationRequest:
    """Return the request with the balanced bundle in the place of the one it names."""
    return replace(request, bundle=balanced.bundle)
