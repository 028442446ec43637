from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quantized import w8a8

from speechquant.benchmarks.papers.regression_check import slowed
from speechquant.core.bundles import Bundle
from speechquant.engines import BuildOptions, build_engine, open_session
from speechquant.engines.ctc.feeds import feeds_of


def test_a_slowed_engine_computes_the_same(
    tiny_bundle: Bundle, noise: NDArray[np.float32], tmp_path: Path
) -> None:
    quantized = w8a8(tiny_bundle, tmp_path / "w8a8")
    engine = build_engine(quantized, tmp_path / "engine", BuildOptions("onnxruntime"))
    slow = slowed(engine, tmp_path / "slow", 64)
    feeds = feeds_of(quantized.spec, [noise, noise[:20_000]])
    with open_session(engine, threads=1) as first, open_session(slow, threads=1) as second:
        assert np.array_equal(first.run(feeds)["logits"], second.run(feeds)["logits"])
    assert slow.only_graph.engine_path.stat().st_size > engine.only_graph.engine_path.stat().st_size
