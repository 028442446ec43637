"""W8A8 bundles made in a moment: the largest value on a noise is every activation's range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.processor import read_processor
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.seq2seq import ENCODER, PREFILL
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.quantize import QdqOptions, quantize_bundle
from speechquant.engines.trials.probed_graph import ProbedGraph

openvino_is_exact = pytest.mark.skipif(
    not read_processor().sums_byte_products_exactly,
    reason="OpenVINO's sums of byte products overflow on this processor (no VNNI, no AMX)",
)


def table_from_noise(
    bundle: Bundle, bits: Bits | None = None, *, attention: bool = False
) -> ScaleTable:
    """A table whose scales are the largest magnitude over 127, on a second of noise."""
    bits = bits or Bits()
    noise = np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    with ProbeSession(bundle, threads=1, attention=attention) as session:
        seen = session.run(feeds_of(bundle.spec, [noise]))
    largest = {name: float(np.abs(values).max()) for name, values in seen.items()}
    levels = 2 ** (bits.activations - 1) - 1
    rows = {
        name: Scale(layer, largest[name] / levels, largest[name])
        for name, layer in bundle.spec.activations(attention=attention).items()
    }
    return ScaleTable(bundle.model_sha256, "max", bits, rows)


def w8a8(bundle: Bundle, out: Path, qdq_format: QdqFormat = QdqFormat.U8) -> Bundle:
    """The bundle with every layer quantized."""
    return quantize_bundle(bundle, out, table_from_noise(bundle), QdqOptions(qdq_format))


def whisper_w8a8(bundle: Bundle, out: Path, *, attention: bool = False) -> Bundle:
    """The bundle with every layer quantized, by what noise and a few tokens give."""
    spec, rng = bundle.spec, np.random.default_rng(1)
    shape = (1, spec.features.mel_bins, spec.features.chunk_frames)
    features = rng.normal(0, 0.7, shape).astype(np.float32)
    seen: dict[str, NDArray[Any]] = {}
    feeds: dict[str, NDArray[Any]] = {"features": features}
    for name in (ENCODER, PREFILL):
        part = bundle.graphs[name]
        tensors = [*part.spec.activations(attention=attention), *(["hidden"] * (name == ENCODER))]
        with ProbedGraph(part, tensors, 1) as graph:
            seen.update(graph.run(feeds))
        tokens = rng.integers(0, spec.generation.end, (1, 8))
        feeds = {"tokens": tokens, "hidden": seen["hidden"]}
    rows = {
        name: Scale(layer, float(np.abs(seen[name]).max()) / 127, float(np.abs(seen[name]).max()))
        for name, layer in spec.activations(attention=attention).items()
    }
    return quantize_bundle(bundle, out, ScaleTable(bundle.model_sha256, "max", Bits(), rows))
