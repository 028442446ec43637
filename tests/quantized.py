"""W8A8 bundles made in a moment: the largest value on a noise is every activation's range."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechquant.core.bundles import Bundle
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.engines.probe import ProbeSession
from speechquant.engines.qdq import Spelling
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.recognizer import feeds_of


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


def w8a8(bundle: Bundle, out: Path, spelling: Spelling = Spelling.ONNXRUNTIME) -> Bundle:
    """The bundle with every layer quantized."""
    return quantize_bundle(bundle, out, table_from_noise(bundle), spelling=spelling)
