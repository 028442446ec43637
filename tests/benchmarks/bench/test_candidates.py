from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized import w8a8
from tiny_whisper import with_generation

from speechquant.benchmarks.bench.candidates import candidates_of
from speechquant.benchmarks.bench.process import CandidateProcess, UnsuitableError
from speechquant.core import onnx_files
from speechquant.core.bundles import Bundle
from speechquant.core.errors import BundleError, EngineError, OptionError
from speechquant.engines import BuildOptions, DecodingOptions, build_engine
from speechquant.engines.balance import balanced_bundle, weights_by_activation
from speechquant.engines.graphs.channel_division import ChannelChange
from speechquant.engines.openvino import plugin as openvino
from speechquant.engines.openvino import session as openvino_session


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return w8a8(tiny_bundle, tmp_path_factory.mktemp("candidates") / "w8a8")


def test_all_that_comes_from_one_float_bundle_is_one_model(
    tiny_bundle: Bundle, quantized: Bundle, tmp_path: Path
) -> None:
    engine = build_engine(quantized, tmp_path / "engine", BuildOptions("onnxruntime"))
    found = candidates_of([engine.folder, quantized.folder, tiny_bundle.folder], ["cpu"])
    assert [(one.name, one.role, one.precision) for one in found] == [
        ("bundle (cpu)", "float", "fp32"),
        ("engine", "ours", "w8a8"),
        ("w8a8 (cpu)", "ours", "w8a8"),
    ]
    # The checkpoint was a folder somewhere; only its name is told.
    assert {one.model for one in found} == {"checkpoint"}
    assert found[1].size_bytes == engine.only_graph.engine_path.stat().st_size
    graph = sum(path.stat().st_size for path in quantized.folder.glob("model.onnx*"))
    assert found[2].size_bytes == graph
    assert len({one.sha256 for one in found}) == 3
    with found[1].open(threads=1) as recognizer:
        assert recognizer.provider == "cpu"


def test_a_bundle_with_balanced_channels_is_of_the_float_bundles_model(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    read = weights_by_activation(tiny_bundle)
    name, weights = next((name, each.weights) for name, each in read.items() if each.weights)
    changes = {name: ChannelChange(np.full(len(weights[0]), 2, np.float32))}
    balanced = w8a8(balanced_bundle(tiny_bundle, tmp_path / "between", changes), tmp_path / "w8a8")
    found = candidates_of([balanced.folder, tiny_bundle.folder], ["cpu"])
    assert balanced.made_from["parent"]["model_sha256"] != tiny_bundle.model_sha256
    assert {one.model for one in found} == {"checkpoint"}


def test_an_engine_of_whisper_is_of_its_bundles_model(
    whisper_bundle: Bundle, tmp_path: Path
) -> None:
    engine = build_engine(whisper_bundle, tmp_path / "engine", BuildOptions("onnxruntime"))
    greedy = DecodingOptions(temperatures=(0.0,))
    whole, built = candidates_of([whisper_bundle.folder, engine.folder], ["cpu"], greedy)
    assert [(one.name, one.role) for one in (whole, built)] == [
        ("bundle (cpu)", "float"), ("engine", "ours"),
    ]  # fmt: skip
    assert whole.model == built.model
    texts = {path.name for path in whisper_bundle.folder.iterdir() if ".onnx" not in path.name}
    loaded = [path for path in engine.folder.iterdir() if path.name not in texts | {"engine.json"}]
    assert built.size_bytes == sum(path.stat().st_size for path in loaded)
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    with CandidateProcess(built, 1) as process:
        assert process.open().provider == "cpu"
        with pytest.raises(UnsuitableError, match="200 clips, and it decodes 120 together at most"):
            process.take([noise] * 200)
        process.take([noise])
        assert process.run().tokens is not None


def test_weights_beside_an_engine_are_a_part_of_it(
    quantized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As those of more than 1 GiB are.
    monkeypatch.setattr(onnx_files, "_EXTERNAL_ABOVE_BYTES", 0)
    engine = build_engine(quantized, tmp_path / "engine", BuildOptions("onnxruntime"))
    weights = (engine.folder / "engine.onnx.data").stat().st_size
    assert weights > 50_000
    (found,) = candidates_of([engine.folder], ["cpu"])
    assert found.size_bytes == weights + engine.only_graph.engine_path.stat().st_size


def test_another_way_to_read_a_model_is_another_candidate(
    whisper_bundle: Bundle, tmp_path: Path
) -> None:
    short = with_generation(whisper_bundle, tmp_path / "bundle", max_new_tokens=3)
    engines = [
        build_engine(bundle, tmp_path / name, BuildOptions("onnxruntime")).folder
        for bundle, name in ((whisper_bundle, "engine"), (short, "other"))
    ]
    for pair in ([whisper_bundle.folder, short.folder], engines):
        found = candidates_of(pair, ["cpu"])
        assert len({one.model for one in found}) == 1
        assert len({one.sha256 for one in found}) == 2


def test_a_provider_named_twice_is_one(tiny_bundle: Bundle) -> None:
    assert len(candidates_of([tiny_bundle.folder], ["cpu", "cpu"])) == 1


def test_two_graphs_of_one_checkpoint_are_two_models(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "x" / "bundle"
    shutil.copytree(tiny_bundle.folder, other)
    found = candidates_of([tiny_bundle.folder, other, other / ".." / "bundle"], ["cpu"])
    # The same graph twice: one model, told apart by their folders.
    assert [one.name for one in found] == [f"{tiny_bundle.folder} (cpu)", f"{other} (cpu)"]
    assert len({one.model for one in found}) == 1


def test_a_provider_that_is_not_to_be_had_is_no_other_one(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offer_none() -> Any:
        raise EngineError("OpenVINO's plugin offers no device")

    monkeypatch.setattr(openvino, "_cpu_device", offer_none)
    monkeypatch.setattr(openvino_session, "find_spec", lambda name: None)
    (found,) = candidates_of([tiny_bundle.folder], ["openvino"])
    with pytest.raises(EngineError, match=r"^openvino: .*OpenVINO") as caught:
        found.open(threads=1)
    assert str(caught.value).endswith("pip install openvino")


def test_what_cannot_be_benched(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for providers in (["gpu"], ["auto"], [""]):
        with pytest.raises(OptionError, match="no provider"):
            candidates_of([tiny_bundle.folder], providers)
    with pytest.raises(OptionError, match="nothing to bench"):
        candidates_of([], ["cpu"])
    with pytest.raises(BundleError):
        candidates_of([tmp_path], ["cpu"])
    with pytest.raises(OptionError, match="no Whisper model among these"):
        candidates_of([tiny_bundle.folder], ["cpu"], DecodingOptions(language="en"))
