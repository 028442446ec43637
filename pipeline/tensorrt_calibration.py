"""From a bundle and data to a scale table, and to TensorRT's calibrator that hands it over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechquant.calibrators import tensorrt
from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.methods import EMA, STABLEQUANT, MethodOptions
from speechquant.calibrators.tensorrt import CalibrationBatches, Feeds, TableCalibrator
from speechquant.core.bundles import Bundle, load_bundle, require_float
from speechquant.core.ctc import CtcSpec
from speechquant.core.errors import OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import ScaleTable
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.pipeline.calibration import CalibrationRequest, calibrate


@dataclass(frozen=True)
class OwnCalibration:
    """Batches for what the table lacks: `samples` and `batch` are the profile's best ones.

    TensorRT's scales are kept in `cache_file`, with the table's put in, for the next build.
    """

    samples: int
    batch: int
    cache_file: Path


def calibrator_for(
    bundle: Bundle | str | Path,
    data: str,
    method: str = STABLEQUANT,
    *,
    work: Path,
    dev: str | None = None,
    batches: OwnCalibration | None = None,
) -> tuple[ScaleTable, TableCalibrator]:
    """Calibrate the float `bundle`, and return the table and the calibrator to build it with.

    The calibrator is an `EmaMinMaxCalibrator` for ema, else a `StableQuantCalibrator`. `work` is a
    folder for what a killed run leaves to the next one. Raises what `calibrate` raises, and
    MissingPackageError or EngineError where this TensorRT has no calibrators.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(Path(bundle))
    spec = bundle.spec_as(CtcSpec)
    require_float(bundle)
    name = "EmaMinMaxCalibrator" if method == EMA else "StableQuantCalibrator"
    # Asked for first: a search of hours must not end in a library that is not there.
    new_calibrator: type[TableCalibrator] = getattr(tensorrt, name)
    request = CalibrationRequest(
        bundle, data, dev, MethodOptions(method), SearchOptions(), work=work
    )
    own = None if batches is None else _batches(spec, request.clips, batches)
    table = calibrate(request).table
    return table, new_calibrator(table, own)


def _batches(
    spec: CtcSpec, clips: Sequence[LabelledClip], options: OwnCalibration
) -> CalibrationBatches:
    if options.samples < spec.min_samples:
        raise OptionError(
            f"batches of {options.samples} samples; the model needs at least {spec.min_samples}"
        )
    feeds = WaveformBatches(spec, clips, options.samples, options.batch)
    made = CalibrationBatches(feeds, options.batch, options.cache_file)
    if len(clips) < options.batch:
        raise OptionError(
            f"batches of {options.batch} clips, and there are {len(clips)}; give more data or "
            "smaller batches"
        )
    return made


@dataclass(frozen=True)
class WaveformBatches:
    """Clips as the network takes them, all batches of one shape, read when they are asked for.

    Longer clips are cut; shorter ones are padded, and TensorRT counts their padding too. What does
    not fill a last batch is left out.
    """

    spec: CtcSpec
    clips: Sequence[LabelledClip]
    samples: int
    batch: int

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the inputs of every batch; raises AudioError."""
        for first in range(0, len(self.clips) - self.batch + 1, self.batch):
            chosen = self.clips[first : first + self.batch]
            waves = [read_clip(self.spec, clip.path)[: self.samples] for clip in chosen]
            feeds = feeds_of(self.spec, waves)
            values = feeds["input_values"]
            missing = self.samples - values.shape[1]
            yield {**feeds, "input_values": np.pad(values, ((0, 0), (0, missing)))}
