"""The commands calibrate and quantize."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechquant.benchmarks.evaluation import Evaluation, evaluate
from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.collection import STATISTICS_FILE
from speechquant.calibrators.guard import GuardResult, keep_budget
from speechquant.calibrators.methods import STABLEQUANT, MethodOptions
from speechquant.calibrators.search_log import SEARCH_FILE
from speechquant.calibrators.stablequant import SearchResult
from speechquant.core.bundles import (
    DESCRIPTION,
    QUANTIZATION_FILE,
    Bundle,
    require_float,
)
from speechquant.core.errors import OptionError
from speechquant.core.files import (
    new_file,
    refuse_existing,
    refuse_existing_file,
    refuse_unwritable,
    storage_errors,
)
from speechquant.core.scales import (
    Bits,
    ScaleTable,
    quantizes_attention,
    read_scales,
    require_fit,
    write_scales,
)
from speechquant.core.seq2seq import (
    CROSS,
    LAST_PROJECTION,
    Seq2SeqBundle,
    load_any_bundle,
    parts_of,
)
from speechquant.core.weights import Levels
from speechquant.core.wer import DifferenceInterval, difference_interval
from speechquant.engines.families import open_recognizer
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.graphs.qdq import Spelling, refuse_unspellable
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.runners import CPU
from speechquant.engines.whisper.scoring import GREEDY
from speechquant.pipeline.calibration import (
    DRAFT_FOLDER,
    NEAREST,
    Calibration,
    CalibrationRequest,
    alone_in,
    calibrate,
    recorded_scorer,
    remove_work,
    work_folder,
)
from speechquant.pipeline.console import megabytes, print_json, print_table, progress

log = logging.getLogger(__name__)

_FLOAT_BITS = 32
NONE = "none"  # of --keep-float


def new_request(
    bundle: Path,
    data: str | None,
    dev: str | None,
    out: Path,
    *,
    method: str,
    bits: int,
    weight_bits: int | None,
    percentile: float,
    asymmetric: bool,
    search: str,
    gamma: float,
    keep_float: Sequence[str] | None,
    normalizer: str,
    limit: int | None,
    workers: int,
    threads: int | None,
    attention: bool = False,
    weights: str = NEAREST,
) -> CalibrationRequest:
    """Return what the command line asks for; raises OptionError and BundleError."""
    loaded = load_any_bundle(bundle)
    return CalibrationRequest(
        bundle=loaded,
        data=data,
        dev=dev,
        method=MethodOptions(
            method,
            Bits(weights=bits if weight_bits is None else weight_bits, activations=bits),
            percentile,
            symmetric=not asymmetric,
        ),
        search=SearchOptions(search, gamma),
        work=work_folder(out),
        keep_float=_kept_in_float(loaded, keep_float),
        attention=attention,
        weight_rounding=weights,
        normalizer=normalizer,
        limit=limit,
        workers=workers,
        threads=threads,
    )


def _kept_in_float(
    bundle: Bundle | Seq2SeqBundle, asked_for: Sequence[str] | None
) -> tuple[str, ...]:
    if asked_for:
        return () if list(asked_for) == [NONE] else tuple(dict.fromkeys(asked_for))
    return (LAST_PROJECTION, CROSS) if isinstance(bundle, Seq2SeqBundle) else ()


def run_calibrate(request: CalibrationRequest, out: Path, *, force: bool, as_json: bool) -> None:
    """Write scales.json and show it in short."""
    require_float(request.bundle)
    search_log = out.with_name(f"{out.stem}.{SEARCH_FILE}")
    for path in (out, search_log) if request.method.method == STABLEQUANT else (out,):
        refuse_existing_file(path, force=force)
    refuse_unwritable(out)
    with alone_in(request.work):
        made = calibrate(request)
        write_scales(made.table, out, force=force)
        if made.search is not None:
            with new_file(search_log, force=True) as partial:
                shutil.copyfile(request.work / SEARCH_FILE, partial)
        remove_work(request.work)
    if as_json:
        print_json({"scales": str(out), **table_facts(made.table), **search_facts(made.search)})
        return
    print(f"{out}: {summary_of(made.table)}")
    if made.search is not None:
        print(f"{search_log}: every evaluation of the search")


@dataclass(frozen=True)
class QuantizeOptions:
    """What quantize takes beside a calibration; `scales` is a table that is there already.

    Raises OptionError for an unknown spelling and for a drop below zero.
    """

    out: Path
    scales: Path | None = None
    spelling_name: str = Spelling.ONNXRUNTIME.value
    max_wer_drop: float | None = None
    force: bool = False

    @property
    def spelling(self) -> Spelling:
        """How the Q/DQ nodes are written."""
        return Spelling(self.spelling_name)

    def __post_init__(self) -> None:
        names = [spelling.value for spelling in Spelling]
        if self.spelling_name not in names:
            raise OptionError(f"no spelling {self.spelling_name!r}; choose {', '.join(names)}")
        if self.max_wer_drop is not None and not 0 <= self.max_wer_drop < math.inf:
            raise OptionError(
                f"--max-wer-drop is {self.max_wer_drop}; give 0 or more percentage points"
            )


@dataclass(frozen=True)
class Outcome:
    """The float bundle and the quantized one on the development set."""

    before: Evaluation
    after: Evaluation

    @property
    def drop(self) -> DifferenceInterval:
        """The paired difference of the two word error rates."""
        return difference_interval(self.before.words, self.after.words)

    @property
    def drop_points(self) -> float:
        """How many percentage points of WER quantization costs."""
        return 100.0 * self.drop.difference


def run_quantize(request: CalibrationRequest, options: QuantizeOptions, *, as_json: bool) -> None:
    """Write the quantized bundle when it is scored and keeps the budget, and show what came."""
    _refuse_before_any_work(request, options)
    with alone_in(request.work):
        is_scored = options.max_wer_drop is not None or request.has_texts
        if is_scored:
            _ = request.dev_clips  # complained of before any work, where they have no texts
        made = _given(request, options) if options.scales else calibrate(request)
        refuse_unspellable(made.table, options.spelling)
        outcome, guard = None, None
        if is_scored:
            outcome, guard = _score_and_guard(request, options, made)
        table = guard.table if guard else made.table
        if not table.tensors:
            log.warning(
                "warning: no layer can be quantized within the budget; OUT is the float model"
            )
        report = report_facts(table, made.search, outcome, guard, options)
        bundle = _write(request, options.out, table, made, options, report)
        remove_work(request.work)
    if as_json:
        print_json({"bundle": str(options.out), "size_bytes": bundle.size_bytes, **report})
        return
    print(f"{options.out}: {megabytes(bundle.size_bytes)}, {summary_of(table)}")
    if outcome:
        greedy = ", greedy" if isinstance(request.bundle, Seq2SeqBundle) else ""
        _print_outcome(outcome, guard, options, f"development clips{greedy}")


def _refuse_before_any_work(request: CalibrationRequest, options: QuantizeOptions) -> None:
    require_float(request.bundle)
    if options.out.resolve() == request.bundle.folder.resolve():
        raise OptionError(
            f"{options.out}: is the float bundle itself, which every other table needs; "
            "choose another name"
        )
    refuse_existing(options.out, DESCRIPTION, force=options.force)
    refuse_unwritable(options.out)
    if options.scales is not None:
        _refuse_beside_scales(request)
        return
    method = request.method
    # A table without rows, since what a backend lacks is known before there are any.
    no_rows = ScaleTable(
        request.bundle.model_sha256, method.method, method.bits, {}, symmetric=method.symmetric
    )
    refuse_unspellable(no_rows, options.spelling)
    request.require_data()


def _refuse_beside_scales(request: CalibrationRequest) -> None:
    """Raise OptionError for options that a table which is there already would not follow."""
    asked_for = {
        "--method, --bits, --percentile or --asymmetric": request.method != MethodOptions(),
        "--search or --gamma": request.search != SearchOptions(),
        "--keep-float": request.keep_float != _kept_in_float(request.bundle, None),
        "--quantize-attention": request.attention,
        "--weights": request.weight_rounding != NEAREST,
    }
    for names, is_asked_for in asked_for.items():
        if is_asked_for:
            raise OptionError(
                f"--scales is a table that is made already, {names} would change nothing of it; "
                "leave one of the two out"
            )


def _given(request: CalibrationRequest, options: QuantizeOptions) -> Calibration:
    if options.scales is None:
        raise ValueError("no scales were given")
    table = read_scales(options.scales)
    require_fit(table, request.bundle, str(options.scales))
    return Calibration(table, None, None, {})


def _write(
    request: CalibrationRequest,
    out: Path,
    table: ScaleTable,
    made: Calibration,
    options: QuantizeOptions,
    report: Mapping[str, Any],
) -> Bundle | Seq2SeqBundle:
    extra: dict[str, bytes | Path] = {
        QUANTIZATION_FILE: (json.dumps(report, indent=1) + "\n").encode(),
    }
    if made.statistics is not None:
        kept = request.work / STATISTICS_FILE
        with storage_errors(kept):
            made.statistics.save(kept)
        extra[STATISTICS_FILE] = kept
    # A log that lies there may be another run's: this one searched, or left layers in float.
    if made.search is not None or table.float_layers != made.table.float_layers:
        extra[SEARCH_FILE] = request.work / SEARCH_FILE
    return quantize_bundle(
        request.bundle,
        out,
        table,
        spelling=options.spelling,
        rounded_weights=_levels_left(request, table, made),
        extra_files=extra,
        force=options.force or out != options.out,
    )


def _levels_left(
    request: CalibrationRequest, table: ScaleTable, made: Calibration
) -> dict[str, Levels]:
    """Return AdaRound's levels without those of the layers that the guard left in float."""
    if not made.levels:
        return {}
    (graph,) = parts_of(request.bundle)
    quantized = {weight.name for weight in constant_weights(graph, table.float_layers)}
    return {name: levels for name, levels in made.levels.items() if name in quantized}


def _score_and_guard(
    request: CalibrationRequest, options: QuantizeOptions, made: Calibration
) -> tuple[Outcome, GuardResult | None]:
    """Score a draft of the bundle; leave layers in float until it keeps the budget, if any."""
    log.info("scoring the float bundle on %d clips", len(request.dev_clips))
    before = _evaluate(request, request.bundle)
    guard: GuardResult | None = None
    allowed = _allowed_errors(before, options.max_wer_drop)
    while True:
        table = guard.table if guard else made.table
        draft = _write(request, request.work / DRAFT_FOLDER, table, made, options, {})
        log.info("scoring %s", table.bits.name)
        outcome = Outcome(before, _evaluate(request, draft))
        excess = outcome.after.words.errors - _allowed_errors(before, options.max_wer_drop)
        if excess <= 0 or not table.tensors:
            return outcome, guard
        log.info("%.2f points over float: leaving layers in float", outcome.drop_points)
        if guard is not None:
            # The simulation kept the budget and the integers do not, by a word or two.
            allowed = min(allowed, guard.errors_after) - max(excess, 1)
        guard = _guard(request, made.table, allowed)


def _allowed_errors(before: Evaluation, max_wer_drop: float | None) -> float:
    if max_wer_drop is None:
        return math.inf
    # A thousandth of an error more: 0.7 % of 1,000 words are 6.999... in floats.
    return before.words.errors + max_wer_drop / 100 * before.words.reference_length + 1e-3


def _evaluate(request: CalibrationRequest, bundle: Bundle | Seq2SeqBundle) -> Evaluation:
    # As the guard and the search score their trials, or their errors could not be compared: on
    # another provider, whose arithmetic is another, no budget could hold even with all in float.
    decoding = GREEDY if isinstance(bundle, Seq2SeqBundle) else None
    with (
        open_recognizer(
            bundle, provider=CPU, threads=request.threads, decoding=decoding
        ) as recognizer,
        progress("evaluating") as on_step,
    ):
        return evaluate(
            recognizer, request.dev_clips, normalizer=request.normalizer, on_step=on_step
        )


def _guard(request: CalibrationRequest, table: ScaleTable, allowed: float) -> GuardResult:
    extra_bytes = dict.fromkeys(request.bundle.spec.layer_names, 0)
    stored_bits = 8 if table.bits.weights <= 8 else 16
    # By name: graphs of one bundle may share weights.
    weights = {w.name: w for part in parts_of(request.bundle) for w in constant_weights(part)}
    for weight in weights.values():
        extra_bytes[weight.layer] += weight.values.size * (_FLOAT_BITS - stored_bits) // 8
    attention = quantizes_attention(table, request.bundle.spec)
    scoring = recorded_scorer(request, attention=attention)
    with scoring as scorer, progress("leaving layers in float") as on_step:
        return keep_budget(table, scorer, len(request.dev_clips), allowed, extra_bytes, on_step)


def summary_of(table: ScaleTable) -> str:
    """Return a table in a few words."""
    parts = [table.bits.name, table.method, f"{len(table.tensors)} activations"]
    if table.percentile is not None:
        clipped = ", ".join(table.clipped_layers) or "no layer"
        parts.append(f"clipped at p = {table.percentile:.2f} %: {clipped}")
    if table.float_layers:
        parts.append(f"in float: {', '.join(table.float_layers)}")
    return "; ".join(parts)


def table_facts(table: ScaleTable) -> dict[str, Any]:
    """Return what there is to say about a table, without its rows."""
    facts = asdict(table)
    del facts["tensors"]
    return {**facts, "quantized_tensors": len(table.tensors)}


def search_facts(search: SearchResult | None) -> dict[str, Any]:
    """Return what a search saw, nothing where there was none."""
    if search is None:
        return {}
    return {
        "search": {
            "layers": [asdict(row) for row in search.layers],
            "percentiles": [asdict(row) for row in search.percentiles],
            "utterances": search.utterances,
            "words": search.words,
            "gamma_points": search.gamma_points,
            "float_errors": search.float_errors,
            "evaluations": search.asked,
            "exhaustive_evaluations": search.exhaustive_evaluations,
        }
    }


def report_facts(
    table: ScaleTable,
    search: SearchResult | None,
    outcome: Outcome | None,
    guard: GuardResult | None,
    options: QuantizeOptions,
) -> dict[str, Any]:
    """Return what quantization.json says."""
    facts = {**table_facts(table), **search_facts(search)}
    if outcome is not None:
        facts["development_set"] = {
            "provider": CPU,
            "clips": len(outcome.before.clips),
            "words": outcome.before.words.reference_length,
            "wer_float": outcome.before.words.rate,
            "wer_quantized": outcome.after.words.rate,
            "drop": asdict(outcome.drop),
        }
    if options.max_wer_drop is not None:
        facts["guard"] = {
            "max_wer_drop_points": options.max_wer_drop,
            "float_layers": [] if guard is None else list(guard.float_layers),
            "reliefs": [] if guard is None else [asdict(relief) for relief in guard.reliefs],
        }
    return facts


def _print_outcome(
    outcome: Outcome, guard: GuardResult | None, options: QuantizeOptions, clips: str
) -> None:
    drop, before, after = outcome.drop, outcome.before, outcome.after
    print(
        f"WER on {len(before.clips)} {clips}: "
        f"float {100 * before.words.rate:.2f} %, "
        f"quantized {100 * after.words.rate:.2f} %; "
        f"{100 * drop.difference:+.2f} points, {100 * drop.confidence:.0f} % interval "
        f"{100 * drop.low:+.2f} to {100 * drop.high:+.2f}; provider {CPU}"
    )
    if options.max_wer_drop is None:
        return
    if guard is None:
        print(f"within the budget of {options.max_wer_drop:.2f} points with every layer quantized")
        return
    print(f"left in float to keep the budget of {options.max_wer_drop:.2f} points:")
    chosen = [relief for relief in guard.reliefs if relief.layer in guard.float_layers]
    print_table(
        ["layer", "errors it saves alone", "costs"],
        [
            [relief.layer, f"{relief.errors_saved}", megabytes(relief.extra_bytes)]
            for relief in chosen
        ],
    )
