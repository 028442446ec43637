"""How far the labels of a CTC model are from the float model's when its activations are rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import ScaleTable
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights

Floats = NDArray[np.float32]


class OutputDistance:
    """The mean KL divergence over the frames of some clips, the weights rounded as in `table`."""

    def __init__(
        self, bundle: Bundle, table: ScaleTable, clips: Sequence[LabelledClip], threads: int | None
    ) -> None:
        graph, spec = bundle.only_graph, bundle.spec_as(CtcSpec)
        self._feeds = [feeds_of(spec, [read_clip(spec, clip.audio)]) for clip in clips]
        in_float = SimulatedSession(graph, threads)
        self._expected = [_log_shares(in_float.run(feeds)["logits"][0]) for feeds in self._feeds]
        self._frames = sum(len(shares) for shares in self._expected)
        self._session = SimulatedSession(graph, threads, rounded_weights(graph, table, {}))

    def __call__(self, table: ScaleTable, bound: float = math.inf) -> float:
        """Return the distance, infinite as soon as the clips so far exceed the bound."""
        self._session.use(table)
        total = 0.0
        for feeds, expected in zip(self._feeds, self._expected, strict=True):
            found = _log_shares(self._session.run(feeds)["logits"][0])
            total += float((np.exp(expected) * (expected - found)).sum())
            if total / self._frames > bound:
                return math.inf
        return total / self._frames


def _log_shares(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    shares: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shares
