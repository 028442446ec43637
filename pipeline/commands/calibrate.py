"""The command calibrate: a scale table from a bundle and audio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.methods import DEFAULT_PERCENTILE, STABLEQUANT, MethodOptions
from speechquant.calibrators.stablequant import GAMMA_POINTS
from speechquant.core.bundles import load_bundle
from speechquant.core.graphs import INPUT
from speechquant.core.scales import CHANNEL
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.options import bits_of, kept_in_float
from speechquant.pipeline.console import print_json, progress
from speechquant.pipeline.sources import named_data
from speechquant.recipes.calibrate import Calibration, CalibrationRequest
from speechquant.recipes.executors.options import PROCESSES, ExecutorOptions
from speechquant.recipes.facts import search_facts, table_facts, table_summary
from speechquant.recipes.table_files import TableFiles, write_calibration


def calibrate(
    bundle: options.BundleFolder,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="The scale table to write.", readable=False)],
    dev: options.Dev = None,
    method: options.Method = STABLEQUANT,
    bits: options.BitsOfBoth = 8,
    weight_bits: options.WeightBits = None,
    percentile: options.Percentile = DEFAULT_PERCENTILE,
    asymmetric: options.Asymmetric = False,
    search: options.Search = "fast",
    gamma: options.Gamma = GAMMA_POINTS,
    keep_float: options.KeepFloat = None,
    float_activations: options.FloatActivations = None,
    weight_scales: options.WeightScales = CHANNEL,
    quantize_attention: options.QuantizeAttention = False,
    placement: options.Placement = INPUT,
    tensorrt_cache: Annotated[
        Path | None,
        typer.Option(
            help="Also write the scales as a calibration cache of TensorRT 8.5 to 10.",
            readable=False,
            rich_help_panel=options.RESULT,
        ),
    ] = None,
    tensorrt_version: Annotated[
        str | None,
        typer.Option(
            help="The TensorRT version that will read the cache, such as 8.5.3; by default the "
            "installed one.",
            rich_help_panel=options.RESULT,
        ),
    ] = None,
    normalizer: options.Normalizer = "basic",
    limit: options.Limit = None,
    skip_unreadable: options.SkipUnreadable = False,
    executor: options.Executor = PROCESSES,
    workers: options.Workers = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make a scale table from a bundle and audio."""
    request = CalibrationRequest(
        bundle=load_bundle(bundle),
        data=named_data(data, limit, skip_unreadable=skip_unreadable),
        dev=named_data(dev, limit, skip_unreadable=skip_unreadable),
        method=MethodOptions(
            method,
            bits_of(bits, weight_bits),
            percentile,
            symmetric=not asymmetric,
            weight_scales=weight_scales,
        ),
        search=SearchOptions(search, gamma),
        keep_float=kept_in_float(keep_float),
        float_activations=tuple(float_activations or ()),
        attention=quantize_attention,
        placement=placement,
        normalizer=normalizer,
        executor=ExecutorOptions(executor, workers),
        threads=threads,
    )
    files = TableFiles(out, tensorrt_cache, tensorrt_version, force)
    made = write_calibration(request, files, progress)
    if json:
        print_json(_facts(made, files))
    else:
        _show(made, files)


def _facts(made: Calibration, files: TableFiles) -> dict[str, object]:
    cache = files.tensorrt_cache
    facts = {"scales": str(files.scales), **({"tensorrt_cache": str(cache)} if cache else {})}
    return {**facts, **table_facts(made.table), **search_facts(made.search)}


def _show(made: Calibration, files: TableFiles) -> None:
    print(f"{files.scales}: {table_summary(made.table)}")
    if made.search is not None:
        print(f"{files.search_log}: every evaluation of the search")
    if files.tensorrt_cache is not None:
        print(f"{files.tensorrt_cache}: the scales as TensorRT's calibration cache")
