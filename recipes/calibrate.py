"""From a bundle and data to a scale table, by any method."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from speechquant.calibrators.adaround_levels import adaround_levels
from speechquant.calibrators.calibrate import (
    SearchOptions,
    candidates_of,
    quantized_layers,
    search_table,
    statistics_key,
)
from speechquant.calibrators.collection import collect
from speechquant.calibrators.methods import (
    BALANCED,
    FROM_STATISTICS,
    STABLEQUANT,
    MethodOptions,
    table_from_statistics,
)
from speechquant.calibrators.search_log import SEARCH_FILE, RecordedScorer
from speechquant.calibrators.stablequant import SearchResult
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CTC
from speechquant.core.errors import ManifestError, OptionError, choice_among
from speechquant.core.graphs import INPUT
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.progress import Progress, no_progress
from speechquant.core.scales import CalibrationData, ScaleTable, refuse_unknown_placement
from speechquant.core.seq2seq import TASK, Seq2SeqSpec
from speechquant.core.text import normalizer
from speechquant.core.weights import Levels
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.probes import open_probe
from speechquant.engines.trials.task import ScoringTask
from speechquant.recipes.data import DataSource, measured_seconds
from speechquant.recipes.executors.options import HERE, ExecutorOptions, opened_workers
from speechquant.recipes.tasks import CollectingStatistics, ScoringTrials, opened_collection

log = logging.getLogger(__name__)

# Below either of them, other clips of the same kind go beyond the ranges that were seen.
_FEW_CLIPS, _FEW_SECONDS = 8, 20.0

NEAREST, ADAROUND = "nearest", "adaround"
ROUNDINGS = (NEAREST, ADAROUND)
# What a model is quantized by where no method is named.
DEFAULT_METHODS = {CTC: STABLEQUANT, TASK: BALANCED}


def default_method(bundle: Bundle) -> str:
    """Return the method for the bundle's family."""
    return DEFAULT_METHODS[bundle.spec.task]


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, on what and how; raises OptionError for what makes no sense.

    `dev` is what trials are scored on, `data` where it is None. `keep_float` are layers to leave in
    float; None leaves those that are left as a rule. Of `float_activations` the weights alone are
    quantized. `fit_clips` is how many clips balanced ranges of a CTC model are fitted on.
    """

    bundle: Bundle
    data: DataSource | None
    dev: DataSource | None = None
    method: MethodOptions = MethodOptions()  # noqa: RUF009 - frozen, so sharing it is safe
    search: SearchOptions = SearchOptions()  # noqa: RUF009
    keep_float: tuple[str, ...] | None = None
    float_activations: tuple[str, ...] = ()
    attention: bool = False
    placement: str = INPUT
    weight_rounding: str = NEAREST
    normalizer: str = "basic"
    executor: ExecutorOptions = HERE
    threads: int | None = None
    fit_clips: int | None = None

    def __post_init__(self) -> None:
        if self.weight_rounding not in ROUNDINGS:
            raise OptionError(
                f"no rounding {self.weight_rounding!r} of weights; "
                + choice_among(self.weight_rounding, ROUNDINGS)
            )
        normalizer(self.normalizer)
        if isinstance(self.bundle.spec, Seq2SeqSpec) and (
            self.attention or self.weight_rounding != NEAREST
        ):
            raise OptionError(
                f"{self.bundle.folder}: of a Whisper model attention's own products stay float and "
                "weights are rounded to nearest; leave --quantize-attention and --weights out"
            )
        self._refuse_unfit_placement()
        if self.float_activations and self.method.method not in FROM_STATISTICS:
            raise OptionError(
                f"{self.method.method} quantizes every activation; leave --float-activations out, "
                f"or choose --method {' or '.join(FROM_STATISTICS)}"
            )
        self._refuse_unfit_balancing()
        _ = self.layers

    def _refuse_unfit_balancing(self) -> None:
        is_balanced = self.method.method == BALANCED
        if is_balanced and (self.attention or self.weight_rounding != NEAREST):
            raise OptionError(
                f"--method {BALANCED} leaves attention's own products in float and rounds weights "
                "to nearest; leave --quantize-attention and --weights out"
            )
        if self.fit_clips is None:
            return
        if self.fit_clips < 1:
            raise OptionError(f"--fit-clips is {self.fit_clips}; give 1 or more")
        if not is_balanced or self.bundle.spec.task != CTC:
            raise OptionError(
                f"--fit-clips fits the ranges of --method {BALANCED} to the outputs of a CTC "
                f"model, not {self.method.method} on {self.bundle.spec.architecture}; leave it out"
            )

    def _refuse_unfit_placement(self) -> None:
        refuse_unknown_placement(self.placement)
        if self.placement == INPUT:
            return
        if self.attention or self.method.method == BALANCED:
            option = "--quantize-attention" if self.attention else f"--method {BALANCED}"
            raise OptionError(
                f"{option} changes what products read, so it goes with --placement {INPUT} alone; "
                f"leave it or --placement {self.placement} out"
            )
        if isinstance(self.bundle.spec, Seq2SeqSpec):
            raise OptionError(
                f"{self.bundle.folder}: a Whisper model's activations are rounded at the inputs of "
                f"its products; leave --placement {self.placement} out"
            )

    @cached_property
    def clips(self) -> list[LabelledClip]:
        """The calibration data, with texts or without: what needs them reads `dev_clips`."""
        if self.data is None:
            raise OptionError("no calibration data; give --data, or a table with --scales")
        return self.data.clips(require_text=False)

    @cached_property
    def dev_clips(self) -> list[LabelledClip]:
        """The development set; the calibration data where none was given."""
        source = self.dev or self.data
        if source is None:
            raise OptionError("no development set to score on; give --dev")
        clips = source.clips(require_text=True)
        if not self._has_words(clips):
            raise ManifestError(
                f"{source}: no word in its texts to compare with; give --dev a set that has some"
            )
        return clips

    @property
    def empty_table(self) -> ScaleTable:
        """A table without rows: what a backend lacks is known before there are any."""
        method = self.method
        return ScaleTable(
            self.bundle.model_sha256,
            method.method,
            method.bits,
            {},
            symmetric=method.symmetric,
            placement=self.placement,
        )

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

    @cached_property
    def clip_keys(self) -> list[str]:
        """A hash of each calibration clip."""
        return [clip_key(clip) for clip in self.clips]

    @cached_property
    def dev_clip_keys(self) -> list[str]:
        """A hash of each clip of the development set."""
        return [clip_key(clip) for clip in self.dev_clips]

    @property
    def float_layers(self) -> tuple[str, ...]:
        """The layers that are left in float; balanced leaves none as a rule."""
        if self.keep_float is not None:
            return self.keep_float
        if self.method.method == BALANCED:
            return ()
        usual = self.bundle.spec.float_layers
        return tuple(layer for layer in usual if layer not in self.float_activations)

    @property
    def layers(self) -> dict[str, str]:
        """The activation tensors to quantize and their layers."""
        in_float = (*self.float_layers, *self.float_activations)
        return quantized_layers(
            self.bundle, in_float, attention=self.attention, placement=self.placement
        )


@dataclass(frozen=True)
class Calibration:
    """A table and what it was made from.

    `statistics` are None for a table that was given, `search` for a method that needs none.
    """

    table: ScaleTable
    statistics: ActivationStatistics | None
    search: SearchResult | None
    levels: dict[str, Levels]


def calibrate(
    request: CalibrationRequest, work: Path, progress: Progress = no_progress
) -> Calibration:
    """Collect, round the weights if asked to, search if the method does, and return the table.

    `work` is a folder for what a killed run leaves to the next one. Raises OptionError for the
    method that changes the graph too.
    """
    if request.method.method == BALANCED:
        raise OptionError(
            f"{BALANCED} changes the graph as well as the scales, so a table alone is not enough; "
            'run "speechquant quantize", or choose another --method'
        )
    request.require_data()
    statistics = statistics_of(request, work, progress)
    data = data_of(request)
    levels = levels_of(request, work, progress)
    search = None
    if request.method.method == STABLEQUANT:
        search = search_result_of(request, statistics, work, progress)
        table = replace(search.table, float_layers=request.float_layers)
    else:
        table = table_of(request, statistics)
    return Calibration(replace(table, data=data), statistics, search, levels)


def data_of(request: CalibrationRequest) -> CalibrationData:
    """Return what a table says of its calibration data."""
    clips = len(request.clips)
    seconds = measured_seconds(request.bundle, request.clips)
    if clips < _FEW_CLIPS or seconds < _FEW_SECONDS:
        log.warning(
            "warning: calibrating on %d clip%s, %.1f s in all; give a few dozen whole utterances "
            "for scales that hold",
            clips, "" if clips == 1 else "s", seconds,
        )  # fmt: skip
    return CalibrationData(data_key(request.clip_keys), clips, round(seconds, 2))


def statistics_of(
    request: CalibrationRequest, work: Path, progress: Progress = no_progress
) -> ActivationStatistics:
    """Return what the activations look like on the calibration data."""
    bundle, clips = request.bundle, request.clips
    attention, placement = request.attention, request.placement
    key = statistics_key(
        bundle, data_key(request.clip_keys), attention=attention, placement=placement
    )
    task = CollectingStatistics(
        bundle.folder, tuple(clips), request.threads, attention=attention, placement=placement
    )
    with (
        opened_collection(task, request.executor) as parts_of,
        progress("collecting statistics") as on_step,
    ):
        log.info(
            "collecting statistics of %d tensors over %d clips",
            len(bundle.spec.activations(attention=attention, placement=placement)),
            len(clips),
        )
        saved = work / f"statistics-{key}.npz"
        return collect(parts_of, len(clips), saved, on_step=on_step)


def table_of(request: CalibrationRequest, statistics: ActivationStatistics) -> ScaleTable:
    """Return the table of a method that needs no search."""
    table = table_from_statistics(
        statistics,
        request.layers,
        request.bundle.model_sha256,
        request.method,
        request.placement,
    )
    return replace(
        table, float_layers=request.float_layers, float_activations=request.float_activations
    )


def levels_of(
    request: CalibrationRequest, work: Path, progress: Progress = no_progress
) -> dict[str, Levels]:
    """Return AdaRound's levels by weight, none for rounding to nearest."""
    if request.weight_rounding == NEAREST:
        return {}
    graph = request.bundle.only_graph
    weights = constant_weights(graph, request.float_layers)
    with (
        open_probe(request.bundle, request.threads) as probe,
        progress("rounding the weights") as on_step,
    ):
        return adaround_levels(
            weights,
            probe.activations_of,
            request.clips,
            request.method.bits.weights,
            work / _levels_name(request),
            on_step,
        )


def _levels_name(request: CalibrationRequest) -> str:
    key = statistics_key(request.bundle, data_key(request.clip_keys))
    return f"{ADAROUND}-{request.method.bits.weights}-{key}.npz"


@contextmanager
def recorded_scorer(
    request: CalibrationRequest, work: Path, *, attention: bool, placement: str
) -> Iterator[RecordedScorer]:
    """Yield what scores trials on the development set, with its log in the work folder.

    `attention` says whether a trial may round what attention multiplies by each other, `placement`
    where trials round.
    """
    rounds = request.weight_rounding == ADAROUND
    task = ScoringTask(
        bundle=request.bundle.folder,
        clips=tuple(request.dev_clips),
        normalizer=request.normalizer,
        threads=request.threads,
        levels=work / _levels_name(request) if rounds else None,
        attention=attention,
        placement=placement,
    )
    # What a score depends on beside the trial and the utterance.
    rest = [request.bundle.reading_sha256, request.normalizer]
    rest += [_levels_name(request)] if rounds else []
    keys = [data_key([key, *rest])[:16] for key in request.dev_clip_keys]
    with (
        opened_workers(ScoringTrials(task), request.executor) as workers,
        RecordedScorer(workers, work / SEARCH_FILE, keys) as recorded,
    ):
        yield recorded


def search_result_of(
    request: CalibrationRequest,
    statistics: ActivationStatistics,
    work: Path,
    progress: Progress = no_progress,
) -> SearchResult:
    """Return what StableQuant chooses on the development set."""
    placement = request.placement
    candidates = candidates_of(
        request.bundle, request.layers, statistics, request.method, placement
    )
    scoring = recorded_scorer(request, work, attention=request.attention, placement=placement)
    with scoring as scorer, progress("searching") as on_step:
        result = search_table(candidates, scorer, len(request.dev_clips), request.search, on_step)
    log.info(
        "clipped layers: %s; p = %.2f; %d utterance evaluations (Algorithm 1: %d)",
        ", ".join(result.table.clipped_layers) or "none",
        result.table.percentile or 0.0,
        result.asked,
        result.exhaustive_evaluations,
    )
    return result
