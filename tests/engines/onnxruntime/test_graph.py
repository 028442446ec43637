from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantized import w8a8
from shared_artifacts import SharedArtifacts
from small_graphs import run
from tiny import VARIANTS

from speechquant.core.bundles import Bundle
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.onnxruntime.graph import cpu_model

# Of WavLM's attention the bias is one for each score, which the fused operator takes, but slowly.
FUSED_ATTENTIONS = {variant: 0 if variant.startswith("wavlm") else 2 for variant in VARIANTS}


# An export takes seconds; these have a group norm, a layer norm and stacked positional convolutions.
IN_SHORT = ("wav2vec2-group", "hubert-layer", "data2vec")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, marks=() if variant in IN_SHORT else pytest.mark.slow)
        for variant in VARIANTS
    ],
)
def test_every_architecture_is_rewritten_whole(
    variant: str, shared: SharedArtifacts, tmp_path: Path
) -> None:
    bundle = shared.bundle(variant)
    whole = w8a8(bundle, tmp_path / "w8a8")
    model = cpu_model(whole.only_graph)
    count = Counter(node.op_type for node in model.graph)
    assert count["Conv"] == 0
    assert count["If"] == FUSED_ATTENTIONS[variant]
    assert count["DequantizeLinear"] == 0, "all that is quantized is multiplied as integers"
    noise = np.random.default_rng(0).standard_normal(24_000).astype(np.float32) * 0.1
    feeds = feeds_of(bundle.spec, [noise, noise[:16_000]])
    expected, got = run(ir.load(whole.only_graph.model_path), feeds), run(model, feeds)
    in_float = run(ir.load(bundle.only_graph.model_path), feeds)
    for row, length in enumerate(feeds["input_lengths"]):
        frames = bundle.spec.frames_of(int(length))
        difference = np.abs(got[row, :frames] - expected[row, :frames]).max()
        quantization = np.abs(in_float[row, :frames] - expected[row, :frames]).max()
        # Sums in another order: a value that tips over a half moves a whole step here and there.
        assert difference < 0.5 * quantization


def test_a_bundle_in_the_other_spelling_gives_the_same_graph(
    tiny_bundle: Bundle,
    tmp_path: Path,
    noise: np.ndarray,  # type: ignore[type-arg]
) -> None:
    feeds = feeds_of(tiny_bundle.spec, [noise])
    outputs = [
        run(cpu_model(w8a8(tiny_bundle, tmp_path / qdq_format.value, qdq_format).only_graph), feeds)
        for qdq_format in QdqFormat
    ]
    np.testing.assert_array_equal(*outputs)
