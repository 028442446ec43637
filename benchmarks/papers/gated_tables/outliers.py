"""How far the activations of a model reach: Table 1 and what the figures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.outliers import OutlierStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.engines.module_probe import AttentionValues
from speechquant.engines.probes import open_module_probe

_TOP_DIMENSIONS = 10
_HEAD = 0
_DIGITS = 4
_CROSS = "encoder_attn"

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class HeadValues:
    """A head of the last decoder layer's self-attention on the first clip."""

    probabilities: Matrix
    values: Matrix
    mixed: Matrix


@dataclass(frozen=True)
class DrawnHead:
    """The same as arrays, which a picture is drawn of."""

    probabilities: NDArray[np.float32]
    values: NDArray[np.float32]
    mixed: NDArray[np.float32]


@dataclass(frozen=True)
class OutlierRecord:
    """Over so many clips: kurtosis averaged over attentions, the largest infinity norm and where.

    `shares` are those of the outliers of `module`, by dimension, the largest first.
    """

    clips: int
    attentions: int
    kurtosis: float
    infinity_norm: float
    largest_in: str
    module: str
    outlier_share: float
    shares: tuple[tuple[int, float], ...]
    head: HeadValues

    def drawn_head(self) -> DrawnHead:
        """Return the head as arrays."""
        rows = (self.head.probabilities, self.head.values, self.head.mixed)
        return DrawnHead(*(np.array(matrix, np.float32) for matrix in rows))


def measure_outliers(
    bundle: Bundle, clips: Sequence[LabelledClip], threads: int, on_step: OnStep | None = None
) -> OutlierRecord:
    """Return what the modules of a float bundle give over clips."""
    statistics = OutlierStatistics()
    head: AttentionValues | None = None
    with open_module_probe(bundle, threads) as probe:
        attentions = probe.attentions
        module = [name for name in attentions if _CROSS not in name][-1]
        for done, clip in enumerate(clips, start=1):
            statistics.add(probe.outputs_of(clip))
            head = head or probe.attention_of(module, _HEAD)
            if on_step is not None:
                on_step(done, len(clips))
    if head is None:
        raise ValueError("no clips to measure outliers on")
    rows = {row.module: row for row in statistics.rows()}
    largest = max(rows.values(), key=lambda row: row.infinity_norm)
    return OutlierRecord(
        clips=len(clips),
        attentions=len(attentions),
        kurtosis=float(np.mean([rows[name].kurtosis for name in attentions])),
        infinity_norm=largest.infinity_norm,
        largest_in=largest.module,
        module=module,
        outlier_share=rows[module].outlier_share,
        shares=tuple(rows[module].top_dimensions(_TOP_DIMENSIONS)),
        head=HeadValues(*map(_matrix, (head.probabilities, head.values, head.mixed))),
    )


def _matrix(values: NDArray[np.float32]) -> Matrix:
    return tuple(tuple(round(float(one), _DIGITS) for one in row) for row in values)
