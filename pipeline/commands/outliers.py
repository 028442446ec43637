"""The command outliers: which modules of a float model give values far from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from speechquant.benchmarks.pictures.outliers import draw_attention, draw_outlier_dimensions
from speechquant.benchmarks.pictures.style import new_figure
from speechquant.calibrators.outliers import ModuleOutliers, OutlierStatistics
from speechquant.core.bundles import load_bundle, require_float
from speechquant.core.errors import OptionError, choice_among
from speechquant.core.files import refuse_unwritable
from speechquant.core.manifests import LabelledClip
from speechquant.engines.module_probe import AttentionValues, ModuleProbe
from speechquant.engines.probes import open_module_probe
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import print_json, print_table, progress
from speechquant.pipeline.sources import NamedData
from speechquant.recipes.data import measured_seconds

_TOP_DIMENSIONS = 10
_SHOWN_DIMENSIONS = 3


def outliers(
    bundle: options.BundleFolder,
    data: options.Data,
    limit: options.FirstClips = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Projection whose attention is drawn; by default the last one."),
    ] = None,
    head: Annotated[int, typer.Option(min=0, help="Head of that attention to draw.")] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pictures: outliers by dimension, and one head's attention.",
            readable=False,
        ),
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Show which modules of a float bundle have outlying activations."""
    loaded = load_bundle(bundle)
    require_float(loaded)
    if pictures is not None:
        refuse_unwritable(pictures / "attention.png")
        new_figure(1.0, 1.0)  # complains of a missing package before the work is done
    clips = NamedData(data, limit).clips(require_text=False)
    measured_seconds(loaded, clips)  # warns of what is not measured
    with open_module_probe(loaded, threads) as probe:
        attentions = probe.attentions
        module = _chosen_attention(attentions, attention)
        rows, shown = _measure(probe, clips, module, head)
    paths: list[Path] = []
    if pictures is not None and shown is not None:
        paths = [pictures / "outlier-dimensions.png", pictures / "attention.png"]
        row = next(row for row in rows if row.module == module)
        shares = row.top_dimensions(_TOP_DIMENSIONS)
        draw_outlier_dimensions({f"Outliers of {module}": shares}, paths[0])
        draw_attention(f"{module}, head {head}", shown, paths[1])
    attended = [row for row in rows if row.module in attentions]
    if json:
        facts = {"bundle": str(bundle), "data": data, "clips": len(clips)}
        facts |= _summary(rows, attended)
        print_json({**facts, "modules": _facts(rows), "pictures": [str(path) for path in paths]})
        return
    _show(rows, attended, len(clips))
    for path in paths:
        print(path)


def _measure(
    probe: ModuleProbe, clips: Sequence[LabelledClip], module: str, head: int
) -> tuple[list[ModuleOutliers], AttentionValues | None]:
    """Return what every module gives over the clips, and a head of attention on the first."""
    statistics, shown = OutlierStatistics(), None
    with progress("measuring") as on_step:
        for done, clip in enumerate(clips, start=1):
            statistics.add(probe.outputs_of(clip))
            shown = shown or _head_of(probe, module, head)
            if on_step is not None:
                on_step(done, len(clips))
    return statistics.rows(), shown


def _chosen_attention(known: Sequence[str], asked_for: str | None) -> str:
    if asked_for is None:  # the last that attends to its own input, as in the paper
        return [module for module in known if "encoder_attn" not in module][-1]
    if asked_for not in known:
        raise OptionError(f"{asked_for!r}: no such attention; {choice_among(asked_for, known)}")
    return asked_for


def _head_of(probe: ModuleProbe, module: str, head: int) -> AttentionValues:
    try:
        return probe.attention_of(module, head)
    except IndexError as error:
        raise OptionError(f"{module} has no head {head}; they are counted from 0") from error


def _summary(rows: Sequence[ModuleOutliers], attended: Sequence[ModuleOutliers]) -> dict[str, Any]:
    return {
        "average_attention_kurtosis": _mean([row.kurtosis for row in attended]),
        "largest_infinity_norm": max(row.infinity_norm for row in rows),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _facts(rows: Sequence[ModuleOutliers]) -> list[dict[str, Any]]:
    return [
        {
            "module": row.module,
            "kurtosis": row.kurtosis,
            "infinity_norm": row.infinity_norm,
            "outlier_share": row.outlier_share,
            "top_dimensions": row.top_dimensions(_TOP_DIMENSIONS),
            "outliers": list(row.outliers),
        }
        for row in rows
    ]


def _show(rows: Sequence[ModuleOutliers], attended: Sequence[ModuleOutliers], clips: int) -> None:
    print_table(
        ["module", "kurtosis", "infinity norm", "beyond 6 sd", "dimensions with most of these"],
        [
            [
                row.module,
                f"{row.kurtosis:.2f}",
                f"{row.infinity_norm:.2f}",
                f"{100 * row.outlier_share:.4f} %",
                ", ".join(
                    f"{index} ({100 * share:.0f} %)"
                    for index, share in row.top_dimensions(_SHOWN_DIMENSIONS)
                ),
            ]
            for row in rows
        ],
    )
    if any(row.kurtosis < 1.0 for row in rows):  # less than the moments of any values can give
        print("note: kurtosis below 1: outputs so small that the definition's floor of 1e-6 shows")
    average = _mean([row.kurtosis for row in attended])
    largest = max(rows, key=lambda row: row.infinity_norm)
    if average is not None:
        outputs = f"{len(attended)} attentions' outputs over {clips} clips"
        print(f"average kurtosis of {outputs}: {average:.2f}")
    print(f"largest infinity norm: {largest.infinity_norm:.2f}, {largest.module}")
