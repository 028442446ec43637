from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shared_artifacts import SharedArtifacts
from tiny_whisper import LANGUAGES, save_tiny_whisper, token_names

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import BundleError, CheckpointError, ParityError
from speechquant.core.seq2seq import GRAPHS
from speechquant.exporter import export
from speechquant.exporter.export import is_whisper
from speechquant.exporter.whisper import export_whisper, layer_of_whisper_module
from speechquant.exporter.whisper_checkpoints import (
    _generation_of,
    _languages_and_tasks,
    cache_name,
    load_whisper,
)
from speechquant.exporter.whisper_graphs import EncoderGraph


@pytest.fixture(scope="module")
def exported(shared: SharedArtifacts) -> Any:
    return shared.whisper_with_parity()


def test_every_output_is_that_of_torch(exported: Any) -> None:
    _, parity = exported
    caches = {
        f"{kind}_{what}.{n}"
        for kind in ("self", "cross")
        for what in ("keys", "values")
        for n in (0, 1)
    }
    compared = {(row.graph, row.output.removeprefix("new_")) for row in parity}
    assert compared == {
        ("encoder", "hidden"),
        *(("decoder_prefill", name) for name in {"logits", *caches}),
        *(("decoder_step", name) for name in {"logits", *(c for c in caches if "self" in c)}),
    }
    assert {row.batch for row in parity} == {1, 3}
    assert all(row.max_difference < 1e-5 * max(1.0, row.largest) for row in parity)
    assert min(row.largest for row in parity) > 0.01


def test_what_is_described_is_what_is_there(exported: Any) -> None:
    bundle: Bundle = exported[0]
    assert load_bundle(bundle.folder) == bundle
    assert list(bundle.graphs) == list(GRAPHS)
    spec = bundle.spec
    step = spec.graphs["decoder_step"]
    assert [tensor.name for tensor in step.inputs][:3] == ["tokens", "self_keys.0", "self_values.0"]
    assert step.inputs[1].dims == ("batch", 4, "past", 8)
    assert step.inputs[-1].dims == ("batch", 4, "positions", 8)
    assert step.outputs[1].name == "new_self_keys.0"
    assert spec.features.chunk_samples == 32_000
    assert spec.generation.languages == {code: 302 + n for n, code in enumerate(LANGUAGES)}
    assert spec.generation.first_timestamp == token_names().index("<|0.00|>")
    assert spec.layer_names == (
        "encoder.conv.0", "encoder.conv.1", "encoder.block.0", "encoder.block.1",
        "encoder.last_projection",        "cross", "decoder.block.0", "decoder.block.1", "head",
    )  # fmt: skip
    # Both decoders quantize the same tensors, but that the encoder's output is read once.
    prefill, step_layers = (spec.graphs[name].layers for name in GRAPHS[1:])
    assert set(prefill) - set(step_layers) == {"hidden"}
    assert set(step_layers) <= set(prefill)
    assert {"features", "conv2.input", "hidden", "decoder.head.input"} <= set(spec.layers)


def test_the_decoders_share_their_weights(exported: Any) -> None:
    bundle: Bundle = exported[0]
    weights = (bundle.folder / "decoder.onnx.data").stat().st_size
    vocabulary, size = len(token_names()), 32
    # Two layers of eight and two products, and the head, which is the embedding too.
    products = 2 * (8 * size**2 + 2 * size * 64) + vocabulary * size + 24 * size
    assert 4 * products < weights < 4 * products + 4096 * 60
    for name in GRAPHS[1:]:
        assert bundle.graphs[name].model_path.stat().st_size < 100_000


def test_layers_of_modules() -> None:
    assert layer_of_whisper_module("decoder.layers.3.encoder_attn.q_proj", 2) == "decoder.block.3"
    assert layer_of_whisper_module("decoder.layers.3.encoder_attn.v_proj", 2) == "cross"
    with pytest.raises(ValueError, match="no layer"):
        layer_of_whisper_module("decoder.embed_tokens", 2)


@pytest.mark.usefixtures("traced_before")
def test_a_wrong_graph_writes_nothing(tmp_path: Path) -> None:
    other = save_tiny_whisper(tmp_path / "other", seed=4)
    # The graphs are those of the tiny Whisper that all share.
    with pytest.raises(ParityError, match=r"hidden of the exported encoder is off by"):
        export(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [other]


def changed(checkpoint: Path, folder: Path, file: str, **values: Any) -> Path:
    shutil.copytree(checkpoint, folder)
    document = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**document, **values}))
    return folder


def test_an_english_only_checkpoint_has_no_languages(tiny_whisper: Path, tmp_path: Path) -> None:
    given = changed(
        tiny_whisper, tmp_path / "english", "generation_config.json", is_multilingual=False
    )
    generation = load_whisper(str(given)).generation
    assert generation.languages == {}
    assert generation.tasks == {}


def test_without_generation_settings_the_rest_is_asked(tiny_whisper: Path, tmp_path: Path) -> None:
    given = tmp_path / "bare"
    shutil.copytree(tiny_whisper, given)
    (given / "generation_config.json").unlink()
    checkpoint = load_whisper(str(given))
    generation = checkpoint.generation
    assert (generation.start, generation.end) == (301, 300)
    assert generation.no_timestamps == token_names().index("<|notimestamps|>")
    assert generation.languages == {}  # its vocabulary is no multilingual one's
    assert "no generation_config.json" in checkpoint.notes[0]


def test_settings_of_a_larger_vocabulary(tiny_whisper: Path, tmp_path: Path) -> None:
    given = changed(
        tiny_whisper,
        tmp_path / "given",
        "generation_config.json",
        suppress_tokens=[5, 50_256],
        begin_suppress_tokens=[220, 50_257],
        eos_token_id=[300],
    )
    generation = load_whisper(str(given)).generation
    assert (generation.suppressed, generation.suppressed_first) == ((5,), (220,))
    assert generation.end == 300


@pytest.mark.parametrize(
    ("settings", "language", "task"),
    [
        ({"language": "haw"}, "haw", None),
        ({"language": "German", "task": "transcribe"}, "de", "transcribe"),
        ({"language": "fr", "task": "sing"}, None, None),  # neither is one of the model's
        ({"forced_decoder_ids": [[1, 303], [2, 305]]}, "de", "translate"),
        ({"forced_decoder_ids": [[1, None], [2, 306]]}, None, "transcribe"),
        ({"forced_decoder_ids": [[1, 303], [2, 306]], "task": "translate"}, None, "translate"),
        ({"forced_decoder_ids": [[1, 303], [2, 305]], "language": "en"}, "en", None),
    ],
)
def test_the_language_and_task_that_a_checkpoint_names(
    tiny_whisper: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    language: str | None,
    task: str | None,
) -> None:
    given = changed(tiny_whisper, tmp_path / "given", "generation_config.json", **settings)
    generation = load_whisper(str(given)).generation
    assert (generation.language, generation.task) == (language, task)


def test_what_an_old_configuration_forces(tiny_whisper: Path, tmp_path: Path) -> None:
    forced = {"forced_decoder_ids": [[1, 303], [2, 305]]}
    given = changed(tiny_whisper, tmp_path / "given", "config.json", **forced)
    generation = load_whisper(str(given)).generation
    assert (generation.language, generation.task) == ("de", "translate")
    # Checkpoints of the first days have no other settings.
    config = SimpleNamespace(
        vocab_size=51_865,
        max_target_positions=448,
        decoder_start_token_id=50_258,
        eos_token_id=50_257,
        forced_decoder_ids=[[1, 50_261], [2, 50_358], [3, 50_363]],
    )
    tokens = {"<|en|>": 50_259, "<|de|>": 50_261, "<|translate|>": 50_358}
    generation = _generation_of(config, None, tokens, "old")
    assert (generation.language, generation.task) == ("de", "translate")


def test_old_settings_tell_by_the_vocabulary_whether_there_are_languages() -> None:
    config = SimpleNamespace(vocab_size=51_865)
    tokens = {"<|en|>": 50_259, "<|de|>": 50_261, "<|transcribe|>": 50_359}
    old = {"forced_decoder_ids": [[1, None], [2, 50_359]]}
    found = _languages_and_tasks(config, old, tokens)
    assert found == ({"en": 50_259, "de": 50_261}, {"transcribe": 50_359})
    assert _languages_and_tasks(config, {**old, "is_multilingual": False}, tokens) == ({}, {})
    assert _languages_and_tasks(SimpleNamespace(vocab_size=51_864), old, tokens) == ({}, {})


def test_bad_checkpoints(tiny_whisper: Path, tmp_path: Path) -> None:
    no_tokens = tmp_path / "no-tokens"
    shutil.copytree(tiny_whisper, no_tokens)
    (no_tokens / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor vocab.json"):
        export(no_tokens, tmp_path / "out")
    (no_tokens / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lists no added tokens"):
        export(no_tokens, tmp_path / "out")
    mels = changed(tiny_whisper, tmp_path / "mels", "preprocessor_config.json", feature_size=128)
    with pytest.raises(CheckpointError, match="makes 128 mel bins, the model takes 80"):
        export(mels, tmp_path / "out")
    (mels / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        export(mels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_which_checkpoints_are_whisper(tiny_whisper: Path, tiny_checkpoint: Path) -> None:
    assert is_whisper("random:whisper-tiny")
    assert not is_whisper("random:hubert-base")
    assert is_whisper(str(tiny_whisper))
    assert not is_whisper(str(tiny_checkpoint))


def test_other_steps_refuse_the_bundle(exported: Any) -> None:
    with pytest.raises(
        BundleError, match="a bundle of task seq2seq, which this step does not take yet"
    ):
        _ = load_bundle(exported[0].folder).only_graph


def checkpoint_of_128_mel_bins(tmp_path: Path) -> Path:
    blocks = {"encoder_layers": 1, "decoder_layers": 1}
    return save_tiny_whisper(tmp_path / "given", num_mel_bins=128, **blocks)


def test_128_mel_bins(tmp_path: Path) -> None:
    checkpoint = load_whisper(str(checkpoint_of_128_mel_bins(tmp_path)))
    assert checkpoint.features.mel_bins == 128
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 128, 200))).float()
    with torch.inference_mode():
        expected = checkpoint.model.model.encoder(features).last_hidden_state
        hidden = EncoderGraph(checkpoint.model)(features)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_128_mel_bins_are_exported(tmp_path: Path) -> None:
    bundle, parity = export_whisper(checkpoint_of_128_mel_bins(tmp_path), tmp_path / "out")
    assert bundle.spec.features.mel_bins == 128
    assert np.all([row.is_close for row in parity])


@pytest.mark.slow
def test_true_size(tmp_path: Path) -> None:
    bundle, parity = export_whisper("random:whisper-tiny", tmp_path / "out")
    assert max(row.max_difference / max(1.0, row.largest) for row in parity) < 1e-5
    assert len(bundle.spec.generation.languages) == 99
    assert bundle.spec.generation.first_timestamp == 50_364


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("decoder_start_token_id", "<|startoftranscript|>"),
        ("eos_token_id", "<|endoftext|>"),
        ("no_timestamps_token_id", "<|notimestamps|>"),
    ],
)
def test_settings_that_name_other_tokens_than_the_tokenizer(
    tiny_whisper: Path, tmp_path: Path, name: str, token: str
) -> None:
    given = changed(tiny_whisper, tmp_path / "given", "generation_config.json", **{name: 7})
    with pytest.raises(CheckpointError, match=rf"{re.escape(token)} is token 7, its tokenizer"):
        load_whisper(str(given))


def test_keys_and_values_have_the_name_that_the_installed_transformers_gives_them() -> None:
    def before(past_key_values: object = None) -> None: ...
    def since(cache: object = None) -> None: ...

    assert cache_name(SimpleNamespace(forward=before)) == "past_key_values"
    assert cache_name(SimpleNamespace(forward=since)) == "cache"
