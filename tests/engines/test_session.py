"""Which session a source gets, and what it does when it cannot have what was asked for."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
from numpy.typing import NDArray
from processors import AMD_BFLOAT16, ARM, INTEL_AMX, INTEL_OLD, INTEL_VNNI, pretend
from quantized import table_from_noise, w8a8

from speechquant.core import onnx_files
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import MODEL
from speechquant.core.engine_folders import Engine, EngineManifest, Limits, make_engine, source_of
from speechquant.core.errors import AudioError, BundleError, EngineError, OptionError
from speechquant.core.processor import Processor
from speechquant.engines import open_recognizer, open_session, registry
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.graphs import in_memory
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.onnxruntime import opening
from speechquant.engines.onnxruntime import session as onnxruntime_session
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options
from speechquant.engines.openvino import session as openvino_session
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return w8a8(tiny_bundle, tmp_path_factory.mktemp("quantized") / "w8a8")


def engine_of(bundle: Bundle, out: Path, backend: str = "onnxruntime") -> Engine:
    def fill(folder: Path) -> dict[str, EngineManifest]:
        shutil.copyfile(bundle.only_graph.model_path, folder / "engine.onnx")
        shutil.copyfile(bundle.folder / "vocab.json", folder / "vocab.json")
        return {MODEL: EngineManifest(backend, "engine.onnx", "cpu", {}, source_of(bundle), "fp32")}

    return make_engine(out, bundle.spec, fill)


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    found = onnx_files.find_spec
    for module in (onnx_files, openvino_session):
        monkeypatch.setattr(
            module, "find_spec", lambda name: None if "openvino" in name else found(name)
        )


def test_a_package_that_nobody_asked_for_is_named_and_not_warned_of(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(INTEL_AMX, monkeypatch, registry, onnxruntime_session)
    without_openvino(monkeypatch)
    with (
        caplog.at_level(logging.INFO, "speechquant"),
        open_session(tiny_bundle, provider="auto") as session,
    ):
        assert session.provider == "cpu"
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == ("faster on this processor: pip install 'speechquant[openvino]'")


def test_a_missing_provider_falls_back_with_its_cause_and_mend(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(AMD_BFLOAT16, monkeypatch, registry, onnxruntime_session)
    without_openvino(monkeypatch)
    with (
        caplog.at_level(logging.INFO, "speechquant"),
        open_session(tiny_bundle, provider="openvino") as session,
    ):
        assert session.provider == "cpu"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "warning: OpenVINO's plugin needs onnxruntime_ep_openvino: "
        "pip install 'speechquant[openvino]'; "
        "the package openvino is not installed: pip install openvino; "
        "running on ONNX Runtime's own CPU provider instead"
    )


@pytest.mark.parametrize(
    ("provider", "processor"),
    [
        ("cpu", INTEL_AMX),
        ("auto", AMD_BFLOAT16),
        ("auto", ARM),
        (None, INTEL_AMX),
        (None, INTEL_VNNI),
    ],
)
def test_what_is_wanted_needs_no_warning(
    tiny_bundle: Bundle,
    provider: str | None,
    processor: Processor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend(processor, monkeypatch, registry, onnxruntime_session)
    with (
        caplog.at_level(logging.INFO, "speechquant"),
        open_session(tiny_bundle, provider=provider) as session,
    ):
        assert session.provider == "cpu"
    assert not caplog.records


def test_bad_options_are_named(tiny_bundle: Bundle) -> None:
    with pytest.raises(
        OptionError, match=r"no provider 'gpu'; did you mean cpu[?] choose auto, cpu, openvino"
    ):
        open_session(tiny_bundle, provider="gpu")
    with pytest.raises(OptionError, match="threads is 0"):
        open_session(tiny_bundle, threads=0)


def test_threads_reach_onnxruntime(tiny_bundle: Bundle) -> None:
    with open_session(tiny_bundle, provider="cpu", threads=1) as session:
        assert isinstance(session, OnnxRuntimeSession)
        assert session._session.get_session_options().intra_op_num_threads == 1


def check_entry(options: onnxruntime.SessionOptions, key: str, expected: str | None) -> None:
    """Check that the options have the entry `expected`, or none."""
    if expected is None:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry(key)
    else:
        assert options.get_session_config_entry(key) == expected


@pytest.mark.parametrize(
    ("processor", "expected"),
    [(AMD_BFLOAT16, None), (INTEL_AMX, None), (INTEL_VNNI, None), (INTEL_OLD, "1"), (ARM, "1")],
)
def test_kernels_that_overflow_are_avoided(
    tiny_bundle: Bundle,
    processor: Processor,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(processor, monkeypatch, registry, onnxruntime_session)
    options = onnxruntime.SessionOptions()
    onnxruntime_session.configure_cpu(options)
    check_entry(options, "session.x64quantprecision", expected)


@pytest.mark.parametrize(("processor", "expected"), [(AMD_BFLOAT16, None), (INTEL_OLD, "1")])
def test_graphs_that_nobody_rewrote_are_computed_as_spelled(
    processor: Processor, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(processor, monkeypatch, onnxruntime_session)
    options = onnxruntime.SessionOptions()
    onnxruntime_session.compute_as_spelled(options)
    check_entry(options, "session.disable_quant_qdq", expected)


def test_without_the_packages_a_bundle_runs_as_it_is_with_a_warning(
    tiny_bundle: Bundle,
    noise: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    signed = w8a8(tiny_bundle, tmp_path / "signed", QdqFormat.S8)
    assert isinstance(opening.cpu_graph(signed.only_graph), bytes)
    feeds = feeds_of(signed.spec, [noise])
    with open_session(signed, provider="cpu", threads=1) as session:
        respelled = session.run(feeds)["logits"]
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    assert opening.cpu_graph(signed.only_graph) == signed.only_graph.model_path
    assert "pip install 'speechquant[quantize]'" in caplog.text
    with open_session(signed, provider="cpu", threads=1) as session:
        as_it_is = session.run(feeds)["logits"]
    assert np.abs(respelled - as_it_is).mean() < 0.05 * np.abs(respelled).mean()


def test_the_provider_computes_what_the_simulated_graph_does(
    tiny_bundle: Bundle, quantized: Bundle, noise: NDArray[np.float32]
) -> None:
    table = table_from_noise(tiny_bundle)
    feeds = feeds_of(quantized.spec, [noise])
    with SimulatedSession(
        tiny_bundle.only_graph, 1, rounded_weights(tiny_bundle.only_graph, table, {})
    ) as simulation:
        in_float = simulation.run(feeds)["logits"]
        simulation.use(table)
        simulated = simulation.run(feeds)["logits"]
    with open_session(quantized, provider="cpu", threads=1) as session:
        logits = session.run(feeds)["logits"]
    # One value that a different order of sums tips over a half moves a whole step.
    assert np.abs(logits - simulated).mean() < 0.3 * np.abs(in_float - simulated).mean()


def test_an_engine_of_onnxruntime_runs_like_its_bundle(
    tiny_bundle: Bundle, noise: NDArray[np.float32], tmp_path: Path
) -> None:
    engine = engine_of(tiny_bundle, tmp_path / "engine")
    feeds = feeds_of(tiny_bundle.spec, [noise])
    with open_session(tiny_bundle, provider="cpu", threads=1) as session:
        expected = session.run(feeds)["logits"]
    for source in (engine, engine.folder, str(engine.folder)):
        with open_session(source, provider="auto", threads=1) as session:
            assert session.provider == "cpu"
            np.testing.assert_array_equal(session.run(feeds)["logits"], expected)
    with open_recognizer(tiny_bundle, provider="cpu", threads=1) as recognizer:
        texts = recognizer.transcribe([noise])
    with open_recognizer(engine.folder, threads=1) as recognizer:
        assert recognizer.provider == "cpu"
        assert recognizer.transcribe([noise]) == texts


def test_an_engine_runs_on_its_own_backend_alone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    engine = engine_of(tiny_bundle, tmp_path / "engine")
    with pytest.raises(OptionError, match="an engine of onnxruntime, which runs on nothing else"):
        open_session(engine, provider="openvino")
    other = replace(engine, manifests={MODEL: replace(engine.manifest, backend="hailo")})
    with pytest.raises(EngineError, match="made for 'hailo', which this version cannot run"):
        open_session(other)


def test_a_damaged_engine_and_a_damaged_graph_are_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    engine = engine_of(tiny_bundle, tmp_path / "engine")
    engine.only_graph.engine_path.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"ONNX Runtime refuses engine\.onnx"):
        open_session(engine)
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"ONNX Runtime refuses model\.onnx"):
        open_session(replace(tiny_bundle, folder=folder), provider="cpu")


def same_texts_in_two_threads(bundle: Bundle, provider: str, clips: int) -> int:
    """Return how many of `clips` get another text where two threads share a session."""
    rng = np.random.default_rng(3)
    waves = [
        rng.standard_normal(int(length)).astype(np.float32)
        for length in rng.integers(4_000, 12_000, clips)
    ]
    with open_recognizer(bundle, provider=provider, threads=1) as recognizer:
        alone = [recognizer.transcribe([wave])[0] for wave in waves]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda wave: recognizer.transcribe([wave])[0], waves))
    assert len(set(alone)) > 1, "one text for all would hide a mixed-up one"
    return sum(a != b for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
@pytest.mark.parametrize("clips", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_threads_share_a_session(quantized: Bundle, provider: str, clips: int) -> None:
    with open_session(quantized, provider=provider, threads=1) as session:
        if session.provider != provider:
            pytest.skip(f"no {provider} here")
    assert same_texts_in_two_threads(quantized, provider, clips) == 0


def test_settings_do_not_leak_between_sessions() -> None:
    assert session_options(1).intra_op_num_threads == 1
    assert session_options(None).intra_op_num_threads == 0


def test_a_graph_too_large_to_rewrite_runs_as_it_is_with_a_warning(
    quantized: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(in_memory, "_LARGEST_GRAPH_BYTES", 1000)
    assert opening.cpu_graph(quantized.only_graph) == quantized.only_graph.model_path
    assert "warning: " in caplog.text and "too large" in caplog.text


def test_a_closed_session_says_so(tiny_bundle: Bundle, noise: NDArray[np.float32]) -> None:
    session = open_session(tiny_bundle, provider="cpu", threads=1)
    with session, session:
        pass  # leaving twice is nothing to complain of
    with pytest.raises(EngineError, match="this session is closed; open another"):
        session.run(feeds_of(tiny_bundle.spec, [noise]))


def with_limits(bundle: Bundle, out: Path, samples: Limits, batch: Limits) -> Engine:
    def fill(folder: Path) -> dict[str, EngineManifest]:
        shutil.copyfile(bundle.only_graph.model_path, folder / "engine.onnx")
        shutil.copyfile(bundle.folder / "vocab.json", folder / "vocab.json")
        limits = {"samples": samples, "batch": batch}
        manifest = EngineManifest(
            "onnxruntime", "engine.onnx", "cpu", {}, source_of(bundle), "fp32", limits
        )
        return {MODEL: manifest}

    return make_engine(out, bundle.spec, fill)


@pytest.mark.parametrize("samples", [15_000, 20_001])
def test_a_clip_beyond_an_engines_lengths_is_named(
    tiny_bundle: Bundle, tmp_path: Path, samples: int
) -> None:
    limits = Limits(16_000, 16_000, 20_000)
    engine = with_limits(tiny_bundle, tmp_path / "engine", limits, Limits(1, 1, 4))
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000).astype(np.float32)
    wrong = np.resize(wave, samples)
    with open_recognizer(engine, threads=1) as recognizer:
        assert len(recognizer.transcribe([wave])) == 1
        with pytest.raises(AudioError, match=r"waveform 1: lasts .* built for 1\.00 to 1\.25 s"):
            recognizer.transcribe([wave, wrong])
        soundfile.write(tmp_path / "wrong.wav", wrong, 16_000)
        with pytest.raises(AudioError, match=r"wrong\.wav: lasts"):
            recognizer.read(tmp_path / "wrong.wav")


def test_an_engine_that_needs_several_clips_at_once_is_no_recognizer(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    limits = Limits(400, 400, 20_000)
    engine = with_limits(tiny_bundle, tmp_path / "engine", limits, Limits(4, 4, 4))
    with pytest.raises(EngineError, match=r"no fewer than 4 clips at once.*--batch 1,4,4"):
        open_recognizer(engine)
