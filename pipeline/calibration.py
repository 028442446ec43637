"""From a bundle and data to a scale table: what `calibrate` and `quantize` share."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from speechquant.calibrators.adaround_levels import adaround_levels
from speechquant.calibrators.calibrate import (
    SearchOptions,
    collect_statistics,
    quantized_layers,
    search_table,
    statistics_key,
)
from speechquant.calibrators.methods import STABLEQUANT, MethodOptions, table_from_statistics
from speechquant.calibrators.search_log import SEARCH_FILE, RecordedScorer
from speechquant.calibrators.stablequant import SearchResult
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import DESCRIPTION, Bundle
from speechquant.core.errors import ManifestError, OptionError
from speechquant.core.files import only_process
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.scales import CalibrationData, ScaleTable
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.core.text import normalizer
from speechquant.core.weights import Levels
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.probes import open_probe
from speechquant.engines.scorers import open_scorer
from speechquant.engines.trials.task import ScoringTask
from speechquant.pipeline.console import progress
from speechquant.pipeline.sources import data_set_of, measured_seconds

log = logging.getLogger(__name__)

NEAREST, ADAROUND = "nearest", "adaround"
DRAFT_FOLDER = "draft"
# All that a run puts into its work folder beside the draft, and what a killed one leaves of that.
_WORK_FILES = (SEARCH_FILE, "statistics*.npz", "adaround-*.npz", ".*.partial-*")


def work_folder(out: Path) -> Path:
    """Return where the work towards `out` is kept until it is there."""
    target = out.resolve()
    return target.parent / f"{target.name}.work"


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Keep other runs out of a work folder: the first to end would remove what they have done.

    Raises StorageError where another one is in it. An empty folder does not stay.
    """
    with only_process(work, wait=False):
        yield


def remove_work(work: Path) -> None:
    """Remove what runs kept in a work folder, and the folder unless somebody's files are in it."""
    if (work / DRAFT_FOLDER / DESCRIPTION).is_file():
        shutil.rmtree(work / DRAFT_FOLDER, ignore_errors=True)
    with suppress(OSError):
        for path in [path for pattern in _WORK_FILES for path in work.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        work.rmdir()


@dataclass(frozen=True)
class CalibrationRequest:
    """What calibrate and quantize are asked for; raises OptionError for what makes no sense.

    `work` is a folder for what a killed run leaves to the next one.
    """

    bundle: Bundle
    data: str | None
    dev: str | None
    method: MethodOptions
    search: SearchOptions
    work: Path
    keep_float: tuple[str, ...] = ()
    attention: bool = False
    weight_rounding: str = NEAREST
    normalizer: str = "basic"
    limit: int | None = None
    workers: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.weight_rounding not in (NEAREST, ADAROUND):
            raise OptionError(
                f"no rounding {self.weight_rounding!r} of weights; choose {NEAREST}, {ADAROUND}"
            )
        normalizer(self.normalizer)
        if isinstance(self.bundle.spec, Seq2SeqSpec) and (
            self.attention or self.weight_rounding != NEAREST
        ):
            raise OptionError(
                f"{self.bundle.folder}: of a Whisper model attention's own products stay float and "
                "weights are rounded to nearest; leave --quantize-attention and --weights out"
            )
        _ = self.layers

    @cached_property
    def clips(self) -> list[LabelledClip]:
        """The calibration data, with texts or without: what needs them reads `dev_clips`."""
        if self.data is None:
            raise OptionError("no calibration data; give --data, or a table with --scales")
        return self._read(self.data, require_text=False)

    @cached_property
    def dev_clips(self) -> list[LabelledClip]:
        """The development set; the calibration data where none was given."""
        source = self.dev or self.data
        if source is None:
            raise OptionError("no development set to score on; give --dev")
        clips = self._read(source, require_text=True)
        if not self._has_words(clips):
            raise ManifestError(
                f"{source}: no word in its texts to compare with; give --dev a set that has some"
            )
        return clips

    @property
    def has_texts(self) -> bool:
        """Whether there is a development set."""
        if self.dev is None and self.data is not None:
            is_complete = all(clip.text is not None for clip in self.clips)
            return is_complete and self._has_words(self.clips)
        return self.dev is not None

    def require_data(self) -> None:
        """Read the data that the method needs, so that it is complained of before any work."""
        _ = self.clips
        if self.method.method == STABLEQUANT:
            _ = self.dev_clips

    def _has_words(self, clips: list[LabelledClip]) -> bool:
        normalize = normalizer(self.normalizer)
        return any(normalize(clip.text or "").split() for clip in clips)

    def _read(self, data: str, require_text: bool) -> list[LabelledClip]:
        with progress("rendering") as on_step:
            return data_set_of(data, require_text=require_text, on_step=on_step)[: self.limit]

    @cached_property
    def clip_keys(self) -> list[str]:
        """A hash of each calibration clip."""
        return [clip_key(clip) for clip in self.clips]

    @cached_property
    def dev_clip_keys(self) -> list[str]:
        """A hash of each clip of the development set."""
        return [clip_key(clip) for clip in self.dev_clips]

    @property
    def layers(self) -> dict[str, str]:
        """The activation tensors to quantize and their layers."""
        return quantized_layers(self.bundle, self.keep_float, attention=self.attention)


@dataclass(frozen=True)
class Calibration:
    """A table and what it was made from.

    `statistics` are None for a table that was given, `search` for a method that needs none.
    """

    table: ScaleTable
    statistics: ActivationStatistics | None
    search: SearchResult | None
    levels: dict[str, Levels]


def calibrate(request: CalibrationRequest) -> Calibration:
    """Collect, round the weights if asked to, search if the method does, and return the table."""
    request.require_data()
    statistics, data = _statistics_of(request)
    levels = _levels_of(request)
    search = None
    if request.method.method == STABLEQUANT:
        search = _search(request, statistics)
        table = search.table
    else:
        table = table_from_statistics(
            statistics, request.layers, request.bundle.model_sha256, request.method
        )
    return Calibration(
        replace(table, data=data, float_layers=request.keep_float), statistics, search, levels
    )


def _statistics_of(
    request: CalibrationRequest,
) -> tuple[ActivationStatistics, CalibrationData]:
    sha256 = data_key(request.clip_keys)
    with (
        open_probe(request.bundle, request.threads, attention=request.attention) as probe,
        progress("collecting statistics") as on_step,
    ):
        statistics = collect_statistics(
            request.bundle,
            request.clips,
            sha256,
            probe.activations_of,
            request.work,
            on_step,
            attention=request.attention,
        )
    seconds = measured_seconds(request.bundle, request.clips)
    return statistics, CalibrationData(sha256, len(request.clips), round(seconds, 2))


def _levels_of(request: CalibrationRequest) -> dict[str, Levels]:
    """Return AdaRound's levels by weight, none for rounding to nearest."""
    if request.weight_rounding == NEAREST:
        return {}
    graph = request.bundle.only_graph
    weights = constant_weights(graph, request.keep_float)
    with (
        open_probe(request.bundle, request.threads) as probe,
        progress("rounding the weights") as on_step,
    ):
        return adaround_levels(
            weights,
            probe.activations_of,
            request.clips,
            request.method.bits.weights,
            request.work / _levels_name(request),
            on_step,
        )


def _levels_name(request: CalibrationRequest) -> str:
    key = statistics_key(request.bundle, data_key(request.clip_keys))
    return f"{ADAROUND}-{request.method.bits.weights}-{key}.npz"


@contextmanager
def recorded_scorer(request: CalibrationRequest, *, attention: bool) -> Iterator[RecordedScorer]:
    """Yield what scores trials on the development set, with its log in the work folder.

    `attention` says whether a trial may round what attention multiplies by each other.
    """
    rounds = request.weight_rounding == ADAROUND
    task = ScoringTask(
        bundle=request.bundle.folder,
        clips=tuple(request.dev_clips),
        normalizer=request.normalizer,
        threads=request.threads,
        levels=request.work / _levels_name(request) if rounds else None,
        attention=attention,
    )
    # What a score depends on beside the trial and the utterance.
    rest = [request.bundle.reading_sha256, request.normalizer]
    rest += [_levels_name(request)] if rounds else []
    keys = [data_key([key, *rest])[:16] for key in request.dev_clip_keys]
    with (
        open_scorer(task, request.workers) as scorer,
        RecordedScorer(scorer, request.work / SEARCH_FILE, keys) as recorded,
    ):
        yield recorded


def _search(request: CalibrationRequest, statistics: ActivationStatistics) -> SearchResult:
    scoring = recorded_scorer(request, attention=request.attention)
    with scoring as scorer, progress("searching") as on_step:
        result = search_table(
            request.bundle,
            request.layers,
            statistics,
            scorer,
            len(request.dev_clips),
            request.method,
            request.search,
            on_step,
        )
    log.info(
        "clipped layers: %s; p = %.2f; %d utterance evaluations (Algorithm 1: %d)",
        ", ".join(result.table.clipped_layers) or "none",
        result.table.percentile or 0.0,
        result.asked,
        result.exhaustive_evaluations,
    )
    return result
