"""What StableQuant's search found, as a quantized bundle keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.bundles import QUANTIZATION_FILE


@dataclass(frozen=True)
class LayerEffect:
    """What quantizing one layer alone does to WER: stage 1 of StableQuant.

    `change_points` and `bound` are percentage points. `bound` is the end of the interval that let
    the search decide after `evaluated_share` of the utterances, None where it saw all of them.
    """

    layer: str
    change_points: float
    selected: bool
    evaluated_share: float
    bound: float | None = None


@dataclass(frozen=True)
class PercentilePoint:
    """WER (a fraction, as ErrorRate.rate) of one candidate percentile: stage 2 of StableQuant."""

    percentile: float
    wer: float
    evaluated_share: float


@dataclass(frozen=True)
class Search:
    """Both stages of a search; `percent` is the percentile it chose."""

    gamma_points: float
    percent: float
    effects: tuple[LayerEffect, ...]
    points: tuple[PercentilePoint, ...]


def read_search(folder: Path) -> Search | None:
    """Return what was found on the way to a bundle, None where nothing was searched."""
    path = folder / QUANTIZATION_FILE
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "search" not in document:
        return None
    search = document["search"]
    utterances = search["utterances"]
    return Search(
        search["gamma_points"],
        document["percentile"],
        tuple(
            LayerEffect(row["layer"], row["points"], row["clipped"], row["utterances"] / utterances)
            for row in search["layers"]
        ),
        tuple(
            PercentilePoint(row["percent"], row["rate"], row["utterances"] / utterances)
            for row in search["percentiles"]
        ),
    )
