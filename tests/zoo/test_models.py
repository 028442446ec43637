from __future__ import annotations

import json
from pathlib import Path

import pytest
from shared_artifacts import SharedArtifacts

from speechquant.benchmarks.papers.float_tables import PARITY_SECONDS, score_torch
from speechquant.core.bundles import Bundle
from speechquant.core.errors import CheckpointError
from speechquant.core.manifests import LabelledClip
from speechquant.engines import open_recognizer
from speechquant.exporter.checkpoints import load_checkpoint
from speechquant.exporter.parity import ParityResult
from speechquant.recipes.evaluate import evaluate
from speechquant.zoo import models
from speechquant.zoo.models import (
    CTC_MODELS,
    MODEL_NAMES,
    TRAINED_MODELS,
    VOCABULARY,
    WAVLM,
    token_ids,
)

SCORED_CLIPS = 30


@pytest.fixture(scope="module", params=CTC_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# An export takes seconds, and comparing words takes longer. zoo:hubert is the one of the demo;
# tests/exporter exports a tiny model of the other's architecture.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "hubert" else pytest.mark.slow)
        for name in CTC_MODELS
    ],
)
def exported(
    request: pytest.FixtureRequest, shared: SharedArtifacts
) -> tuple[str, Bundle, list[ParityResult]]:
    return request.param, *shared.zoo_bundle_with_parity(request.param)


@pytest.fixture(scope="module")
def clips(shared: SharedArtifacts) -> list[LabelledClip]:
    return shared.zoo_clips()[:SCORED_CLIPS]


def test_logits_equal_torch_at_every_length(
    exported: tuple[str, Bundle, list[ParityResult]],
) -> None:
    _, _, results = exported
    assert [result.seconds for result in results] == list(PARITY_SECONDS)
    assert max(result.max_difference for result in results) <= 1e-4


def test_bundle_and_torch_make_the_same_errors(
    exported: tuple[str, Bundle, list[ParityResult]], clips: list[LabelledClip]
) -> None:
    name, bundle, _ = exported
    expected = score_torch(TRAINED_MODELS / name, clips)
    with open_recognizer(bundle) as recognizer:
        result = evaluate(recognizer, clips)
    assert result.words.errors == expected.errors
    # A model that hears nothing would make the same errors everywhere too.
    assert expected.rate < 0.8


def test_checkpoint_fits_the_package(name: str) -> None:
    folder = TRAINED_MODELS / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12e6
    config = json.loads((folder / "config.json").read_text())
    assert config["conv_kernel"] == [10, 3, 3, 3, 3, 2, 2]
    assert config["conv_stride"] == [5, 2, 2, 2, 2, 2, 2]
    assert config["feat_extract_norm"] == {"wav2vec2": "group", "hubert": "layer"}[name]
    assert config["do_stable_layer_norm"] is (name == "hubert")


def test_the_wavlm_is_read_as_a_model_of_the_zoo() -> None:
    folder = models.trained_model(WAVLM)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25e6
    assert load_checkpoint(str(folder)).architecture == "WavLMForCTC"
    assert json.loads((folder / "vocab.json").read_text()) == {
        token: index for index, token in enumerate(VOCABULARY)
    }


@pytest.mark.slow
def test_the_wavlm_hears(clips: list[LabelledClip]) -> None:
    assert score_torch(TRAINED_MODELS / WAVLM, clips).rate < 0.8  # 0.6 on all of zoo:test


def test_labels_spell_the_text() -> None:
    ids = token_ids("it's one")
    assert [VOCABULARY[i] for i in ids] == ["i", "t", "'", "s", "|", "o", "n", "e"]
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 32


def test_saved_files_are_what_transformers_reads(name: str) -> None:
    vocabulary = json.loads((TRAINED_MODELS / name / "vocab.json").read_text())
    assert vocabulary == {token: index for index, token in enumerate(VOCABULARY)}
    preprocessor = json.loads((TRAINED_MODELS / name / "preprocessor_config.json").read_text())
    assert preprocessor["do_normalize"] is True
    assert preprocessor["return_attention_mask"] is (name == "hubert")


def test_every_model_on_disk_is_in_the_list() -> None:
    folders = sorted(path.name for path in Path(TRAINED_MODELS).iterdir() if path.is_dir())
    assert folders == sorted(MODEL_NAMES)


def test_a_wheel_without_weights_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "TRAINED_MODELS", tmp_path / "wheel" / "trained-models")
    with pytest.raises(CheckpointError, match=r"zoo:hubert: its weights .* copy .* to"):
        models.trained_model("hubert")
    copied = tmp_path / "trained-models" / "hubert"
    copied.mkdir(parents=True)
    (copied / "model.safetensors").touch()
    assert models.trained_model("hubert") == copied
