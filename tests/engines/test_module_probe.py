from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_model

from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.engines.probes import open_module_probe

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> LabelledClip:
    path = tmp_path_factory.mktemp("clip") / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ), RATE_HZ)
    return LabelledClip(path, None)


def caught_by(modules: dict[str, Any]) -> dict[str, np.ndarray]:
    """What torch's modules give from now on, under the names that they are wanted by."""
    caught: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _given, output, name=name: caught.__setitem__(
                name, output.detach().numpy()
            )
        )
    return caught


def test_outputs_of_a_ctc_model_are_those_of_torch(tiny_bundle: Bundle, clip: LabelledClip) -> None:
    model = tiny_model("hubert-layer")
    hubert = model.hubert
    caught = caught_by({
        "feature_extractor.conv_layers.2.conv": hubert.feature_extractor.conv_layers[2].conv,
        "encoder.layers.1.attention.out_proj": hubert.encoder.layers[1].attention.out_proj,
        "encoder.layers.0.feed_forward.output_dense": hubert.encoder.layers[0].feed_forward.output_dense,
        "head": model.lm_head,
    })  # fmt: skip
    wave = feeds_of(tiny_bundle.spec, [read_clip(tiny_bundle.spec, clip.path)])["input_values"]
    with torch.inference_mode():
        model(torch.from_numpy(wave))
    with open_module_probe(tiny_bundle, 1) as probe:
        found = probe.outputs_of(clip)
        assert probe.attentions == [f"encoder.layers.{n}.attention.out_proj" for n in range(2)]
        head = probe.attention_of(probe.attentions[1], 3)
    for name, expected in caught.items():
        wanted = np.moveaxis(expected, 1, -1) if "conv" in name else expected
        assert found[name] == pytest.approx(wanted, abs=2e-4), name
    assert head.probabilities.sum(axis=-1) == pytest.approx(1.0, abs=1e-5)
    assert head.probabilities @ head.values == pytest.approx(head.mixed, abs=1e-5)
    assert head.probabilities.shape == (49, 49) and head.values.shape == (49, 12)


def test_outputs_of_a_whisper_model_are_those_of_torch(
    tiny_whisper: Path, whisper_bundle: Bundle, clip: LabelledClip
) -> None:
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(tiny_whisper).eval()
    encoder, decoder = model.model.encoder, model.model.decoder
    caught = caught_by({
        "encoder.conv1": encoder.conv1,
        "encoder.layers.1.self_attn.out_proj": encoder.layers[1].self_attn.out_proj,
        "decoder.layers.1.encoder_attn.v_proj": decoder.layers[1].encoder_attn.v_proj,
        "decoder.layers.0.feed_forward.fc2": decoder.layers[0].fc2,
    })  # fmt: skip
    greedy = DecodingOptions(temperatures=(0.0,))
    with open_recognizer(whisper_bundle, threads=1, decoding=greedy) as recognizer:
        features, tokens = recognizer.first_chunk(recognizer.read(clip.path))
    with torch.inference_mode():
        model(torch.from_numpy(features), decoder_input_ids=torch.tensor([tokens]))
    with open_module_probe(whisper_bundle, 1) as probe:
        found = probe.outputs_of(clip)
        head = probe.attention_of("decoder.layers.1.self_attn.out_proj", 0)
        with pytest.raises(KeyError):
            probe.attention_of("decoder.head", 0)
    assert len(probe.attentions) == 6
    for name, expected in caught.items():
        wanted = np.moveaxis(expected, 1, -1) if "conv" in name else expected
        assert found[name] == pytest.approx(wanted, abs=2e-4), name
    # No token attends to a later one.
    assert np.all(np.triu(head.probabilities, 1) == 0) and len(head.values) == len(tokens)
