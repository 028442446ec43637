"""The engine of ONNX Runtime: rewritten, optimised once, stored, and run without the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from quantized import w8a8

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Limits, load_engine
from speechquant.core.errors import OptionError
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.onnxruntime.session import (
    OnnxRuntimeSession,
    have_exact_products,
    session_options,
)

ENGINE = BuildOptions("onnxruntime")


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return w8a8(tiny_bundle, tmp_path_factory.mktemp("engine") / "w8a8")


def logits_of(path: Path, bundle: Bundle, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    options = session_options(1)
    have_exact_products(options)
    with OnnxRuntimeSession(path, options) as session:
        return session.run(feeds_of(bundle.spec, [wave]))["logits"]


def test_the_stored_graph_is_the_rewritten_one(
    quantized: Bundle, noise: NDArray[np.float32], tmp_path: Path
) -> None:
    engine = build_engine(quantized, tmp_path / "engine", ENGINE)
    assert load_engine(tmp_path / "engine") == engine
    operators = [node.op_type for node in onnx.load(engine.only_graph.engine_path).graph.node]
    assert "MatMulIntegerToFloat" in operators
    assert not {"Conv", "DequantizeLinear", "SkipLayerNormalization"} & set(operators)
    expected = logits_of(quantized.only_graph.model_path, quantized, noise)
    got = logits_of(engine.only_graph.engine_path, quantized, noise)
    # A value that tips over a half moves by a step; the labels are what counts.
    assert np.abs(got - expected).mean() < 0.01 * np.abs(expected).mean()
    assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.95


def test_a_float_bundle_can_be_stored_as_well(
    tiny_bundle: Bundle, noise: NDArray[np.float32], tmp_path: Path
) -> None:
    engine = build_engine(tiny_bundle, tmp_path / "engine", ENGINE)
    expected = logits_of(tiny_bundle.only_graph.model_path, tiny_bundle, noise)
    np.testing.assert_allclose(
        logits_of(engine.only_graph.engine_path, tiny_bundle, noise), expected, atol=1e-4
    )


def test_the_manifest_says_what_it_was_made_of(quantized: Bundle, tmp_path: Path) -> None:
    manifest = build_engine(quantized, tmp_path / "engine", ENGINE).manifest
    assert manifest.source["model_sha256"] == quantized.model_sha256
    assert manifest.toolchain == {"onnxruntime": onnxruntime.__version__}
    assert (manifest.target, manifest.float_type, manifest.limits) == ("cpu", "fp32", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions("onnxruntime", target="sm86"), "target is 'sm86'.*any CPU"),
        (BuildOptions("onnxruntime", float_type="fp16"), "float type is 'fp16'.*fp32"),
        (BuildOptions("onnxruntime", batch=Limits(1, 1, 1)), "batch is given.*leave it out"),
        (BuildOptions("onnxruntime", samples=Limits(400, 400, 400)), "lengths is given"),
        (BuildOptions("onnxruntime", timing_cache=Path("x")), "timing cache is given"),
    ],
)
def test_what_belongs_to_other_backends_is_refused(
    quantized: Bundle, tmp_path: Path, options: BuildOptions, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        build_engine(quantized, tmp_path / "engine", options)
    assert list(tmp_path.iterdir()) == []
