"""The command quantize: a W8A8 bundle from a float one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.methods import BALANCED, DEFAULT_PERCENTILE, MethodOptions
from speechquant.calibrators.range_fit import MOST_BITS
from speechquant.calibrators.stablequant import GAMMA_POINTS
from speechquant.core.bundles import load_bundle
from speechquant.core.graphs import INPUT
from speechquant.core.scales import CHANNEL
from speechquant.engines.decoding_options import GREEDY
from speechquant.engines.families import family_of
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.runners import CPU
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.options import bits_of, kept_in_float
from speechquant.pipeline.console import megabytes, print_json, print_table, progress
from speechquant.pipeline.sources import named_data
from speechquant.recipes.calibrate import (
    NEAREST,
    ROUNDINGS,
    CalibrationRequest,
    default_method,
)
from speechquant.recipes.executors.options import PROCESSES, ExecutorOptions
from speechquant.recipes.facts import table_summary
from speechquant.recipes.guard import Outcome
from speechquant.recipes.quantize import Quantized, QuantizeOptions
from speechquant.recipes.quantize import quantize as write_quantized

_WIDE_POINTS = 0.5  # of WER, which is more than W8A8 is to cost


def quantize(
    bundle: options.BundleFolder,
    out: options.BundleToWrite,
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration audio: a manifest, a folder, or another kind that docs/data.md lists."
        ),
    ] = None,
    dev: options.Dev = None,
    scales: Annotated[
        Path | None,
        typer.Option(
            help="Use this table, made by `calibrate`, instead of calibrating.", readable=False
        ),
    ] = None,
    method: options.MethodOrDefault = None,
    bits: options.BitsOfBoth = 8,
    weight_bits: options.WeightBits = None,
    percentile: options.Percentile = DEFAULT_PERCENTILE,
    asymmetric: options.Asymmetric = False,
    fit_clips: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"For --method {BALANCED} of CTC models: move ranges until the outputs on this "
            f"many clips differ least from float. For {MOST_BITS} bits and fewer.",
            rich_help_panel=options.SEARCH,
        ),
    ] = None,
    search: options.Search = "fast",
    gamma: options.Gamma = GAMMA_POINTS,
    max_wer_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest loss of WER on --dev, in points. Layers go back to float until it is "
            "kept. Whisper models are decoded greedily."
        ),
    ] = None,
    keep_float: options.KeepFloat = None,
    float_activations: options.FloatActivations = None,
    weight_scales: options.WeightScales = CHANNEL,
    quantize_attention: options.QuantizeAttention = False,
    placement: options.Placement = INPUT,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help=f"How weights are rounded: {' or '.join(ROUNDINGS)}.",
            rich_help_panel=options.SEARCH,
        ),
    ] = NEAREST,
    qdq_format: Annotated[
        str,
        typer.Option(
            help="How activations are stored: u8 (for ONNX Runtime and OpenVINO) or s8 (for "
            "TensorRT).",
            rich_help_panel=options.RESULT,
        ),
    ] = QdqFormat.U8.value,
    normalizer: options.Normalizer = "basic",
    limit: options.Limit = None,
    skip_unreadable: options.SkipUnreadable = False,
    executor: options.Executor = PROCESSES,
    workers: options.Workers = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make a W8A8 bundle (or another width) from a float one. A run that was killed continues."""
    source = load_bundle(bundle)
    # A table that is there already was made by a method of its own.
    method = method or (MethodOptions().method if scales else default_method(source))
    # TensorRT takes no zero point but 0; the CPU's kernels take any, and so twice the levels.
    symmetric = not asymmetric and (method != BALANCED or qdq_format == QdqFormat.S8.value)
    request = CalibrationRequest(
        bundle=source,
        data=named_data(data, limit, skip_unreadable=skip_unreadable),
        dev=named_data(dev, limit, skip_unreadable=skip_unreadable),
        method=MethodOptions(
            method,
            bits_of(bits, weight_bits),
            percentile,
            symmetric=symmetric,
            weight_scales=weight_scales,
        ),
        search=SearchOptions(search, gamma),
        keep_float=kept_in_float(keep_float),
        float_activations=tuple(float_activations or ()),
        attention=quantize_attention,
        placement=placement,
        weight_rounding=weights,
        normalizer=normalizer,
        executor=ExecutorOptions(executor, workers),
        threads=threads,
        fit_clips=fit_clips,
    )
    asked_for = QuantizeOptions(out, scales, qdq_format, max_wer_drop, force)
    made = write_quantized(request, asked_for, progress)
    if json:
        print_json({"bundle": str(out), "size_bytes": made.bundle.size_bytes, **made.report})
    else:
        show_quantized(made, asked_for)
    if not json and made.bundle.placement == INPUT:
        print(
            f"next: speechquant build {shlex.quote(str(out))} ENGINE --backend onnxruntime "
            "(an engine opens faster and in less memory)"
        )


def show_quantized(made: Quantized, asked_for: QuantizeOptions) -> None:
    """Show what was written and what it costs."""
    size = megabytes(made.bundle.size_bytes)
    print(f"{asked_for.out}: {size}, {table_summary(made.table)}")
    if made.outcome is None:
        return
    greedy = ", greedy" if family_of(made.bundle).trial_decoding is GREEDY else ""
    _show_outcome(made.outcome, f"development clips{greedy}")
    if asked_for.max_wer_drop is not None:
        _show_guard(made.outcome, asked_for.max_wer_drop)


def _show_outcome(outcome: Outcome, clips: str) -> None:
    drop, before, after = outcome.drop, outcome.before, outcome.after
    points = f"{100 * drop.difference:+.2f} points"
    if drop.is_of_nothing:
        change = "no clip has other errors"
    elif len(after.clips) == 1:
        change = f"{points}; one clip gives no interval"
    else:
        interval = f"{100 * drop.low:+.2f} to {100 * drop.high:+.2f}"
        change = f"{points}, {100 * drop.confidence:.0f} % interval {interval}"
    print(
        f"WER on {len(before.clips)} {clips}, {after.words.reference_length:,} words: "
        f"float {100 * before.words.rate:.2f} %, "
        f"quantized {100 * after.words.rate:.2f} %; {change}; provider {CPU}"
    )
    hidden = 100 * outcome.hidden_loss
    if hidden >= _WIDE_POINTS:
        print(
            f"so few words can hide a loss of {hidden:.1f} points; "
            "score more with --dev before you trust this"
        )


def _show_guard(outcome: Outcome, max_wer_drop: float) -> None:
    guard = outcome.guard
    if guard is None:
        print(f"within the budget of {max_wer_drop:.2f} points with every layer quantized")
        return
    print(f"left in float to keep the budget of {max_wer_drop:.2f} points:")
    chosen = [relief for relief in guard.reliefs if relief.layer in guard.float_layers]
    print_table(
        ["layer", "errors it saves alone", "costs"],
        [
            [relief.layer, f"{relief.errors_saved}", megabytes(relief.extra_bytes)]
            for relief in chosen
        ],
    )
