"""Whisper bundles on OpenVINO: that a run's values, handed on from step to step, are the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from processors import INTEL_AMX, INTEL_VNNI, every_processor, pretend, replace_openers
from quantized import openvino_is_exact, whisper_w8a8

from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError, MissingPackageError
from speechquant.core.processor import Processor
from speechquant.engines import DecodingOptions, open_recognizer, registry
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.onnxruntime.opening import open_bundle_graph
from speechquant.engines.openvino import plugin as openvino
from speechquant.engines.session import how_it_runs, open_decoder_session

PROMPTS = np.array([[301, 302, 306], [301, 303, 306], [301, 304, 306]])
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed: pip install openvino"
)


@pytest.fixture(scope="module")
def quantized(whisper_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return whisper_w8a8(whisper_bundle, tmp_path_factory.mktemp("q") / "w8a8")


@pytest.fixture
def in_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose processor the plugin does not take, and without bfloat16."""

    def offer_none() -> Any:
        raise EngineError("OpenVINO's plugin offers no device")

    monkeypatch.setattr(openvino, "_cpu_device", offer_none)
    pretend(INTEL_VNNI, monkeypatch, openvino)


def features_of(bundle: Bundle, seed: int, clips: int = 3) -> NDArray[np.float32]:
    spec = bundle.spec.features
    shape = (clips, spec.mel_bins, spec.chunk_frames)
    return np.random.default_rng(seed).normal(0, 0.7, shape).astype(np.float32)


def outputs_of(bundle: Bundle, provider: str, seed: int = 5) -> list[NDArray[np.float32]]:
    """What the encoder, the prompt and six steps give, two clips of three after the third."""
    with open_decoder_session(bundle, provider=provider, threads=1) as session:
        assert session.provider == provider
        hidden = session.encode(features_of(bundle, seed))
        run = session.start(hidden, PROMPTS)
        before = [run.advance([60 + step, 70, 80]) for step in range(3)]
        run.keep([2, 0])
        after = [run.advance([90, 60 + step]) for step in range(3)]
        return [hidden, run.prompt_logits, *before, *after]


@needs_openvino
@openvino_is_exact
@pytest.mark.usefixtures("in_package")
def test_it_computes_what_the_cpu_provider_does(
    whisper_bundle: Bundle,
    quantized: Bundle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_float = outputs_of(whisper_bundle, "cpu")
    for mine, expected in zip(outputs_of(whisper_bundle, "openvino"), in_float, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-4 * np.abs(expected).max())
    on_cpu, on_openvino = (outputs_of(quantized, name) for name in ("cpu", "openvino"))
    for mine, expected, plain in zip(on_openvino, on_cpu, in_float, strict=True):
        # One value that a different order of sums tips over a half moves a whole step.
        assert np.abs(mine - expected).mean() < 0.3 * np.abs(plain - expected).mean()
    assert not caplog.records, "nothing is missing"


@openvino_is_exact
def test_the_plugin_computes_it_too(
    whisper_bundle: Bundle, quantized: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        openvino._cpu_device()
    except (EngineError, MissingPackageError) as error:
        pytest.skip(str(error))
    replace_openers(monkeypatch, {"openvino-package": failing(EngineError(""))})
    in_float = outputs_of(whisper_bundle, "cpu")
    for mine, expected in zip(outputs_of(whisper_bundle, "openvino"), in_float, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-4 * np.abs(expected).max())
    rows = zip(
        outputs_of(quantized, "openvino"), outputs_of(quantized, "cpu"), in_float, strict=True
    )
    for mine, expected, plain in rows:
        # Rounded values that tip, and bfloat16 between them, cost as much as quantizing at most.
        assert np.abs(mine - expected).mean() < np.abs(plain - expected).mean()


@needs_openvino
@pytest.mark.usefixtures("in_package")
def test_runs_that_are_under_way_together_do_not_disturb_each_other(
    whisper_bundle: Bundle,
) -> None:
    with open_decoder_session(whisper_bundle, provider="openvino", threads=1) as session:
        hidden = session.encode(features_of(whisper_bundle, 7))
        alone = []
        for clip in range(3):
            run = session.start(hidden[clip : clip + 1], PROMPTS[clip : clip + 1])
            alone.append([run.prompt_logits, *(run.advance([50 + step]) for step in range(5))])
        runs = [
            session.start(hidden[clip : clip + 1], PROMPTS[clip : clip + 1]) for clip in (0, 1, 2)
        ]
        together = [[run.advance([50 + step]) for run in runs] for step in range(5)]
    for clip in range(3):
        np.testing.assert_array_equal(runs[clip].prompt_logits, alone[clip][0])
        for step in range(5):
            np.testing.assert_array_equal(together[step][clip], alone[clip][1 + step])


@needs_openvino
@pytest.mark.usefixtures("in_package")
@pytest.mark.parametrize("temperatures", [(0.0,), (0.6,)])
def test_texts_are_those_of_the_cpu(
    whisper_bundle: Bundle, temperatures: tuple[float, ...]
) -> None:
    rng, options = np.random.default_rng(3), DecodingOptions(temperatures=temperatures)
    # Of different lengths, the last of several chunks.
    waves = [
        0.1 * rng.standard_normal(n).astype(np.float32) for n in (9_000, 20_000, 30_000, 70_000)
    ]
    heard = {}
    for provider in ("cpu", "openvino"):
        with open_recognizer(
            whisper_bundle, provider=provider, threads=1, decoding=options
        ) as recognizer:
            assert recognizer.provider == provider
            heard[provider] = recognizer.transcribe(waves)
    assert heard["openvino"] == heard["cpu"]
    assert all(heard["cpu"])


@needs_openvino
@pytest.mark.usefixtures("in_package")
def test_a_closed_session_says_so(whisper_bundle: Bundle) -> None:
    session = open_decoder_session(whisper_bundle, provider="openvino", threads=1)
    assert how_it_runs(session) == "OpenVINO in its own package"
    step = session.graphs["decoder_step"]
    with session:
        pass
    with pytest.raises(EngineError, match="this session is closed; open another"):
        session.encode(features_of(whisper_bundle, 0))
    with pytest.raises(EngineError, match="this session is closed; open another"):
        step.new_runs()


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def test_all_three_graphs_run_on_the_cpu_where_openvino_refuses_one(
    whisper_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened: list[str] = []

    def refuse_a_step(graph: Any, *arguments: Any) -> Any:
        opened.append(graph.name)
        if graph.name == "decoder_step":
            raise EngineError("the package openvino refuses the graph")
        return open_bundle_graph(graph, *arguments)

    missing = failing(MissingPackageError("no plugin"))
    replace_openers(monkeypatch, {"openvino-plugin": missing, "openvino-package": refuse_a_step})
    with open_decoder_session(whisper_bundle, provider="openvino", threads=1) as session:
        assert isinstance(session, Seq2SeqSession)
        assert session.provider == "cpu"
        assert how_it_runs(session) == "ONNX Runtime's CPU provider"
    assert opened == ["encoder", "decoder_prefill", "decoder_step"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "warning: no plugin; the package openvino refuses the graph; running on ONNX Runtime's own "
        "CPU provider instead"
    )


@every_processor
@pytest.mark.parametrize("provider", ["auto", "cpu", None])
def test_auto_is_openvino_on_intels_processors_alone(
    provider: str | None,
    processor: Processor,
    whisper_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def refuse(*_: object) -> Any:
        tried.append(1)
        raise EngineError("not here")

    names = ("openvino-plugin", "openvino-package", "onnxruntime")
    replace_openers(monkeypatch, dict.fromkeys(names, refuse))
    pretend(processor, monkeypatch, registry)
    with pytest.raises(EngineError, match="not here"):
        open_decoder_session(whisper_bundle, provider=provider)
    is_openvino = provider == "auto" and processor.vendor == "GenuineIntel"
    assert len(tried) == (3 if is_openvino else 1)


def test_the_type_of_what_is_not_quantized(
    whisper_bundle: Bundle, quantized: Bundle, tmp_path: Path
) -> None:
    for bundle, expected in ((whisper_bundle, "f32"), (quantized, "bf16")):
        for name in bundle.spec.graphs:
            assert openvino.float_type(bundle.graphs[name], INTEL_AMX) == expected
            assert openvino.float_type(bundle.graphs[name], INTEL_VNNI) == "f32"
