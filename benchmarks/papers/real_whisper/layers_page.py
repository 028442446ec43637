"""The section on what quantizing each activation costs, from records alone."""

from __future__ import annotations

from pathlib import Path

from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row
from speechquant.benchmarks.papers.real_whisper.layers import (
    LayersRecord,
    layers_record_name,
)
from speechquant.benchmarks.papers.real_whisper.records import ABSENT, Records
from speechquant.benchmarks.papers.real_whisper.rows import slug
from speechquant.benchmarks.papers.real_whisper.run import Run
from speechquant.benchmarks.pictures.balance import ActivationErrors, draw_balance

PICTURES = "real-whisper"  # a folder beside the page
_ROWS = 10


def layer_lines(run: Run, records: Records, folder: Path) -> list[str]:
    """Return the tables of all checkpoints, whose pictures are drawn into a folder of `folder`."""
    lines: list[str] = []
    for checkpoint in run.checkpoints:
        record = records.read(LayersRecord, layers_record_name(run, checkpoint))
        lines += [f"## Why: the activations of {checkpoint.name}", ""]
        if record is None:
            lines += [ABSENT, ""]
            continue
        picture = f"{PICTURES}/{slug(checkpoint.name)}-layers.png"
        errors = [
            ActivationErrors(one.layer, one.error_before, one.error) for one in record.activations
        ]
        draw_balance(checkpoint.name, errors, folder / picture)
        lines += [*layer_table(record), "", f"![errors by activation]({picture})", ""]
    return lines


def layer_table(record: LayersRecord) -> list[str]:
    """Return the activations whose products err most when they alone are quantized."""
    worst = sorted(record.activations, key=lambda one: -one.error_before)[:_ROWS]
    return [
        f"The {len(worst)} activations, of {len(record.activations)}, whose products err most when "
        "the activation and the weights beside it are quantized and nothing else is. The error is "
        "the square of what is lost relative to that of the product, the mean over tokens. Peaks "
        f"are the largest magnitudes over {record.clips} clips of the calibration set: of all "
        "channels, and of the median channel. Kept channels stay in float.",
        "",
        *heading_rows(
            "activation", "peak", "median channel", "ratio", "divided channels", "kept channels",
            "error before", "error after",
        ),
        *(
            markdown_row(
                f"`{one.name}`", f"{one.peak:.1f}", f"{one.median_peak:.2f}",
                f"{one.peak / one.median_peak:.0f}" if one.median_peak else "",
                one.divided_channels, one.kept_channels,
                f"{one.error_before:.5f}", f"{one.error:.5f}",
            )
            for one in worst
        ),
    ]  # fmt: skip
