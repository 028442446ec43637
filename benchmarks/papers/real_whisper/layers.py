"""What balancing did to each activation of a checkpoint, and how unequal its channels were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.records import key_of
from speechquant.benchmarks.papers.real_whisper.rows import slug
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, Run, thinned
from speechquant.calibrators.channels import collect_ranges
from speechquant.core.bundles import QUANTIZATION_FILE
from speechquant.core.errors import ReportError
from speechquant.core.files import read_text
from speechquant.core.plain import parsed
from speechquant.core.progress import OnStep
from speechquant.engines.balance import weights_by_activation
from speechquant.engines.probes import open_probe

MOST_CLIPS = 16  # whose channels are looked at


@dataclass(frozen=True)
class ActivationFacts:
    """An activation, the largest magnitude in it and in its median channel, and its balancing.

    The errors are those of its products, relative to their squares, the activation alone quantized.
    """

    name: str
    layer: str
    peak: float
    median_peak: float
    divided_channels: int
    kept_channels: int
    error_before: float
    error: float


@dataclass(frozen=True)
class LayersRecord:
    """The activations in the order of the graphs; their channels were seen in so many clips."""

    clips: int
    activations: tuple[ActivationFacts, ...]


def layers_record_name(run: Run, checkpoint: CheckpointFacts) -> str:
    """Return the name of a checkpoint's record."""
    key = key_of(checkpoint.key, run.calibration.key, run.machine)
    return f"{slug(checkpoint.name, 'layers')}-{key}"


def measure_layers(models: Models, on_step: OnStep | None = None) -> LayersRecord:
    """Return the record of the balanced bundle, which is made where it is not there."""
    path = models.balanced.folder / QUANTIZATION_FILE
    balance = parsed(read_text(path, ReportError, "delete it"))["balance"]
    bundle, clips = models.float_bundle, thinned(models.calibration, MOST_CLIPS)
    read = weights_by_activation(bundle)
    axes = {name: read[name].channel_axis for name in balance}
    with open_probe(bundle, models.threads) as probe:
        ranges = collect_ranges(probe.activations_of, axes, clips, on_step=on_step)
    layers = bundle.spec.layers
    return LayersRecord(
        len(clips),
        tuple(
            ActivationFacts(
                name=name,
                layer=layers[name],
                peak=float(ranges[name].amax.max()),
                median_peak=float(np.median(ranges[name].amax)),
                divided_channels=found["divided_channels"],
                kept_channels=len(found["kept_channels"]),
                error_before=found["error_before"],
                error=found["error"],
            )
            for name, found in balance.items()
        ),
    )
