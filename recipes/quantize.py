"""From a float bundle and data to a quantized bundle that is scored and keeps its budget."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.collection import STATISTICS_FILE
from speechquant.calibrators.methods import BALANCED, MethodOptions
from speechquant.calibrators.search_log import SEARCH_FILE
from speechquant.core.bundles import DESCRIPTION, QUANTIZATION_FILE, Bundle, require_float
from speechquant.core.errors import OptionError, choice_among
from speechquant.core.files import refuse_existing, refuse_unwritable, storage_errors
from speechquant.core.graphs import INPUT
from speechquant.core.progress import Progress, no_progress
from speechquant.core.scales import ScaleTable, read_scales, require_fit
from speechquant.core.weights import Levels, read_trained_weights
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.graphs.qdq import QdqFormat, refuse_unfit_format
from speechquant.engines.quantize import QdqOptions, quantize_bundle
from speechquant.recipes.balance import balance, on_balanced
from speechquant.recipes.calibrate import (
    NEAREST,
    Calibration,
    CalibrationRequest,
    calibrate,
)
from speechquant.recipes.facts import (
    balance_facts,
    guard_facts,
    outcome_facts,
    search_facts,
    table_facts,
)
from speechquant.recipes.guard import Guard, Outcome
from speechquant.recipes.work import DRAFT_FOLDER, alone_in, remove_work, work_folder

log = logging.getLogger(__name__)

BROKEN_POINTS = 1.0  # of WER; a method that fits a model costs a few tenths
FOREIGN_RATE = 0.6  # of errors; a model that hears its own language makes fewer


@dataclass(frozen=True)
class QuantizeOptions:
    """What quantizing takes beside a calibration; `scales` is a table that is there already.

    Raises OptionError for an unknown Q/DQ format and for a drop below zero.
    """

    out: str | Path
    scales: str | Path | None = None
    format_name: str = QdqFormat.U8.value
    max_wer_drop: float | None = None
    force: bool = False

    @property
    def target(self) -> Path:
        """The folder of the bundle to write."""
        return Path(self.out)

    @property
    def qdq_format(self) -> QdqFormat:
        """How the Q/DQ nodes are written."""
        return QdqFormat(self.format_name)

    def __post_init__(self) -> None:
        names = [qdq_format.value for qdq_format in QdqFormat]
        if self.format_name not in names:
            raise OptionError(
                f"no Q/DQ format {self.format_name!r}; " + choice_among(self.format_name, names)
            )
        if self.max_wer_drop is not None and not 0 <= self.max_wer_drop < math.inf:
            raise OptionError(
                f"--max-wer-drop is {self.max_wer_drop}; give 0 or more percentage points"
            )


@dataclass(frozen=True)
class Quantized:
    """The bundle that was written, its table, and what quantization.json says.

    `outcome` is None where there was no development set.
    """

    bundle: Bundle
    table: ScaleTable
    outcome: Outcome | None
    report: Mapping[str, Any]


def quantize(
    request: CalibrationRequest, options: QuantizeOptions, progress: Progress = no_progress
) -> Quantized:
    """Write the quantized bundle when it is scored and keeps the budget.

    A run that was killed goes on where it was. Raises OptionError, ManifestError, BundleError,
    ScaleError, CalibrationError, OutputExistsError, StorageError and MissingPackageError.
    """
    _refuse_before_any_work(request, options)
    _warn_of_other_levels(request.bundle)
    work = work_folder(options.target)
    with alone_in(work):
        is_scored = options.max_wer_drop is not None or request.has_texts
        if is_scored:
            _ = request.dev_clips  # complained of before any work, where they have no texts
        request, made, notes = _calibrated(request, options, work, progress)
        refuse_unfit_format(made.table, options.qdq_format)
        writer = _Writer(request, made, work, options.qdq_format)
        guard = Guard(request, work, writer.write_draft, options.max_wer_drop, progress)
        outcome = guard.outcome_of(made.table) if is_scored else None
        guarded = None if outcome is None else outcome.guard
        table = guarded.table if guarded else made.table
        if not table.tensors:
            log.warning(
                "warning: no layer can be quantized within the budget; OUT is the float model"
            )
        if outcome is not None:
            _warn_of_words(outcome, table.method)
        report = {
            **table_facts(table),
            **search_facts(made.search),
            **notes,
            **outcome_facts(outcome),
            **guard_facts(guarded, options.max_wer_drop),
        }
        bundle = writer.write(table, options.target, report, force=options.force)
        remove_work(work)
    return Quantized(bundle, table, outcome, report)


def _warn_of_other_levels(bundle: Bundle) -> None:
    trained = read_trained_weights(bundle.folder)
    if any(not weight.is_uniform for weight in trained.values()):
        log.warning(
            "warning: %s: its weights were trained as sums of powers of two, which no backend "
            "multiplies; they are rounded to integers once more",
            bundle.folder,
        )


def _warn_of_words(outcome: Outcome, method: str) -> None:
    """Warn, before the bundle is written, of texts that prove nothing and of a certain loss."""
    if outcome.before.words.rate > FOREIGN_RATE:
        log.warning(
            "warning: the float bundle itself has a WER of %.0f %% on the development set, so the "
            "difference proves nothing; give whole clips in the model's language with their texts",
            100 * outcome.before.words.rate,
        )
    low, high = 100 * outcome.drop.low, 100 * outcome.drop.high
    if low > BROKEN_POINTS:
        log.warning(
            "warning: %s costs %.2f points of WER on the development set (95 %% interval %.2f to "
            "%.2f): the bundle is not fit for use; choose another --method, or give a budget with "
            "--max-wer-drop",
            method, outcome.drop_points, low, high,
        )  # fmt: skip


def _refuse_before_any_work(request: CalibrationRequest, options: QuantizeOptions) -> None:
    require_float(request.bundle)
    if options.target.resolve() == request.bundle.folder.resolve():
        raise OptionError(
            f"{options.out}: is the float bundle itself, which every other table needs; "
            "choose another name"
        )
    refuse_existing(options.target, DESCRIPTION, force=options.force)
    refuse_unwritable(options.target)
    if options.scales is not None:
        _refuse_beside_scales(request)
        return
    refuse_unfit_format(request.empty_table, options.qdq_format)
    request.require_data()


def _refuse_beside_scales(request: CalibrationRequest) -> None:
    """Raise OptionError for options that a table which is there already would not follow."""
    asked_for = {
        "--method, --bits, --percentile, --asymmetric or --weight-scales": request.method
        != MethodOptions(),
        "--search or --gamma": request.search != SearchOptions(),
        "--keep-float": request.keep_float is not None,
        "--float-activations": bool(request.float_activations),
        "--quantize-attention": request.attention,
        "--placement": request.placement != INPUT,
        "--weights": request.weight_rounding != NEAREST,
    }
    for names, is_asked_for in asked_for.items():
        if is_asked_for:
            raise OptionError(
                f"--scales is a table that is made already, {names} would change nothing of it; "
                "leave one of the two out"
            )


def _calibrated(
    request: CalibrationRequest, options: QuantizeOptions, work: Path, progress: Progress
) -> tuple[CalibrationRequest, Calibration, dict[str, Any]]:
    """Return the request for the bundle to quantize, its calibration, and what to report of it."""
    if options.scales is not None:
        return request, _given(request, options.scales), {}
    if request.method.method != BALANCED:
        return request, calibrate(request, work, progress), {}
    balanced = balance(request, work, progress)
    made = Calibration(balanced.table, None, None, {})
    return on_balanced(request, balanced), made, balance_facts(balanced)


def _given(request: CalibrationRequest, scales: str | Path) -> Calibration:
    table = read_scales(scales)
    require_fit(table, request.bundle, str(scales))
    return Calibration(table, None, None, {})


@dataclass(frozen=True)
class _Writer:
    """Writes the bundle of a table with all that its making left behind."""

    request: CalibrationRequest
    made: Calibration
    work: Path
    qdq_format: QdqFormat

    def write_draft(self, table: ScaleTable) -> Bundle:
        """Write a bundle to be scored into the work folder, over the last one."""
        return self.write(table, self.work / DRAFT_FOLDER, {}, force=True)

    def write(
        self, table: ScaleTable, out: Path, report: Mapping[str, Any], *, force: bool
    ) -> Bundle:
        """Write a bundle with `report` in it."""
        extra: dict[str, bytes | Path] = {
            QUANTIZATION_FILE: (json.dumps(report, indent=1) + "\n").encode(),
        }
        if self.made.statistics is not None:
            kept = self.work / STATISTICS_FILE
            with storage_errors(kept):
                self.made.statistics.save(kept)
            extra[STATISTICS_FILE] = kept
        # A log that lies there may be another run's: this one searched, or left layers in float.
        if self.made.search is not None or table.float_layers != self.made.table.float_layers:
            extra[SEARCH_FILE] = self.work / SEARCH_FILE
        return quantize_bundle(
            self.request.bundle,
            out,
            table,
            QdqOptions(self.qdq_format, self._levels_left(table), extra),
            force=force,
        )

    def _levels_left(self, table: ScaleTable) -> dict[str, Levels]:
        """Return AdaRound's levels without those of the layers that the guard left in float."""
        if not self.made.levels:
            return {}
        graph = self.request.bundle.only_graph
        quantized = {weight.name for weight in constant_weights(graph, table.float_layers)}
        return {name: levels for name, levels in self.made.levels.items() if name in quantized}
