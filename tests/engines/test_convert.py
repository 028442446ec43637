from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import transformers

from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.core.seq2seq import ENCODER, PREFILL
from speechquant.engines.convert import _MODEL_TYPES, convert
from speechquant.exporter.checkpoints import ARCHITECTURES


def outputs_of(path: Path, feeds: dict[str, object]) -> dict[str, object]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_onnx_asr_gets_the_same_values_under_its_own_names(
    whisper_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(whisper_bundle, out, "onnx-asr")
    spec = whisper_bundle.spec
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, spec.features.mel_bins, 100)).astype(np.float32)  # type: ignore[attr-defined]
    ours = outputs_of(whisper_bundle.graphs[ENCODER].model_path, {"features": features})
    theirs = outputs_of(out / "encoder_model.onnx", {"input_features": features})
    np.testing.assert_array_equal(theirs["last_hidden_state"], ours["hidden"])  # type: ignore[arg-type]
    tokens = np.array([[301, 5, 6]], np.int64)
    prefill = whisper_bundle.graphs[PREFILL].model_path
    ours = outputs_of(prefill, {"tokens": tokens, "hidden": ours["hidden"]})
    theirs = outputs_of(
        out / "decoder_model_merged.onnx",
        {"input_ids": tokens, "encoder_hidden_states": theirs["last_hidden_state"]},
    )
    assert list(theirs) == ["logits"]
    np.testing.assert_array_equal(theirs["logits"], ours["logits"])  # type: ignore[arg-type]
    added = json.loads((out / "added_tokens.json").read_text())
    assert added["<|startoftranscript|>"] == 301
    assert not set(added) & set(json.loads((out / "vocab.json").read_text()))
    assert json.loads((out / "config.json").read_text())["model_type"] == "whisper"


def test_optimum_gets_the_same_logits_without_lengths(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny_bundle, out, "optimum")
    waves = np.random.default_rng(0).standard_normal((2, 5_000)).astype(np.float32)
    given = {"input_values": waves, "input_lengths": np.array([5_000, 5_000], np.int64)}
    ours = outputs_of(tiny_bundle.only_graph.model_path, given)
    theirs = outputs_of(out / "model.onnx", {"input_values": waves})
    np.testing.assert_array_equal(theirs["logits"], ours["logits"])  # type: ignore[arg-type]
    assert (out / "vocab.json").is_file()
    assert transformers.AutoConfig.from_pretrained(out).architectures == [
        tiny_bundle.spec.architecture
    ]


def test_every_architecture_has_its_name_in_transformers() -> None:
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
    assert set(_MODEL_TYPES) == set(ARCHITECTURES)
    for architecture, kind in _MODEL_TYPES.items():
        assert known[kind] == architecture


def test_optimum_reads_no_whisper_bundle(whisper_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give a CTC bundle"):
        convert(whisper_bundle, tmp_path / "out", "optimum")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_asr_cannot_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give a multilingual Whisper bundle"):
        convert(tiny_bundle, tmp_path / "out", "onnx-asr")
    with pytest.raises(OptionError, match="did you mean onnx-asr"):
        convert(tiny_bundle, tmp_path / "out", "onnxasr")
    assert list(tmp_path.iterdir()) == []
