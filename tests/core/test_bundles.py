from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from speechquant.core.artifact_folders import digest_of
from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import BundleError
from speechquant.core.graphs import OUTPUT


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))


def test_a_bundle_reads_back_as_it_was_written(tiny_bundle: Bundle, copy: Path) -> None:
    again = load_bundle(copy)
    assert again.spec == tiny_bundle.spec
    assert again.model_sha256 == tiny_bundle.model_sha256
    assert list(again.spec.layers.items()) == list(tiny_bundle.spec.layers.items())
    assert again.size_bytes == sum((copy / name).stat().st_size for name in again.files)


def test_a_bundle_of_before_attention_was_named_reads_too(tiny_bundle: Bundle, copy: Path) -> None:
    path = copy / "bundle.json"
    document = json.loads(path.read_text())
    document.pop("sha256")
    assert set(document["spec"].pop("attention").values()) == {"block.0", "block.1"}
    path.write_text(json.dumps({**document, "sha256": digest_of(document)}))
    spec = load_bundle(copy).spec
    assert spec == replace(tiny_bundle.spec, attention={})
    assert spec.activations(attention=True) == spec.layers


def test_a_bundle_of_before_outputs_were_named_reads_too(tiny_bundle: Bundle, copy: Path) -> None:
    path = copy / "bundle.json"
    document = json.loads(path.read_text())
    document.pop("sha256")
    outputs = document["spec"].pop("layer_outputs")
    assert outputs == tiny_bundle.spec.activations(placement=OUTPUT)
    path.write_text(json.dumps({**document, "sha256": digest_of(document)}))
    assert load_bundle(copy).spec == replace(tiny_bundle.spec, layer_outputs={})


@pytest.mark.parametrize("name", ["model.onnx", "vocab.json", "preprocessor_config.json"])
def test_every_file_is_checked(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"{name}: altered or truncated"):
        load_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        load_bundle(copy)


@pytest.mark.parametrize("change", ["files", "made_from", "decoding", "extra"])
def test_a_description_of_another_make_is_refused(copy: Path, change: str) -> None:
    path = copy / "bundle.json"
    document = json.loads(path.read_text())
    document.pop("sha256")
    if change == "decoding":
        document["spec"].pop(change)
    elif change == "extra":
        document["spec"][change] = 1
    else:
        document.pop(change)
    path.write_text(json.dumps({**document, "sha256": digest_of(document)}))
    with pytest.raises(BundleError, match="not as this version writes it"):
        load_bundle(copy)


def test_another_format_is_refused(copy: Path) -> None:
    path = copy / "bundle.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": "speechquant.bundle/9"}))
    with pytest.raises(BundleError, match=r"speechquant\.bundle/9"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("samples", "frames"), [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49)]
)
def test_frames_follow_the_convolutions(tiny_bundle: Bundle, samples: int, frames: int) -> None:
    # 49 frames for one second is what the wav2vec 2.0 paper's front end gives.
    assert tiny_bundle.spec.frames_of(samples) == frames
    assert tiny_bundle.spec.min_samples == 400
