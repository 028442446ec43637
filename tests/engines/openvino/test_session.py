"""OpenVINO in its own package: when it is taken, and that it computes what the others do."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processors
import pytest
from numpy.typing import NDArray
from processors import (
    AMD_BFLOAT16,
    AMD_OLD,
    ARM,
    INTEL_AMX,
    INTEL_OLD,
    INTEL_VNNI,
    pretend,
    replace_openers,
)
from quantized import openvino_is_exact, w8a8
from shared_artifacts import SharedArtifacts

from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError, MissingPackageError
from speechquant.core.processor import Processor
from speechquant.engines import registry
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession
from speechquant.engines.openvino import plugin as openvino
from speechquant.engines.openvino import session as openvino_session
from speechquant.engines.openvino.backend import OPENVINO_PACKAGE
from speechquant.engines.openvino.session import OpenVinoSession
from speechquant.engines.registry import backends_of
from speechquant.engines.runners import Session
from speechquant.engines.session import how_it_runs, open_session

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed: pip install openvino"
)


@pytest.fixture(scope="module", params=["hubert-layer", "wav2vec2-group"])
def bundles(
    request: pytest.FixtureRequest,
    shared: SharedArtifacts,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Bundle, Bundle]:
    bundle = shared.bundle(request.param)
    return bundle, w8a8(bundle, tmp_path_factory.mktemp(request.param) / "w8a8")


@pytest.fixture
def no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the plugin offers no device, whatever this one is."""

    def offer_none() -> Any:
        raise EngineError("OpenVINO's plugin offers no device")

    monkeypatch.setattr(openvino, "_cpu_device", offer_none)


def logits_of(session: Session, bundle: Bundle, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run(feeds_of(bundle.spec, [wave]))["logits"]
    return logits


@needs_openvino
@openvino_is_exact
@pytest.mark.usefixtures("no_plugin")
def test_it_computes_nearly_what_the_cpu_provider_does(
    bundles: tuple[Bundle, Bundle],
    noise: NDArray[np.float32],
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: dict[str, list[NDArray[np.float32]]] = {"cpu": [], "openvino": []}
    for provider, logits in found.items():
        for bundle in bundles:
            with open_session(bundle, provider=provider, threads=1) as session:
                assert session.provider == provider
                assert isinstance(session, OpenVinoSession) == (provider == "openvino")
                logits.append(logits_of(session, bundle, noise))
    assert not caplog.records, "nothing is missing"
    (in_float, expected), (also_in_float, quantized) = found["cpu"], found["openvino"]
    np.testing.assert_allclose(also_in_float, in_float, atol=1e-4)
    # Where the processor has bfloat16, it is between the layers: 8 bits, as many as the levels have,
    # so other values tip over a half. Two roundings that have nothing in common differ by the square
    # root of 2 times what each of them costs.
    cost = np.abs(in_float - expected).mean()
    assert np.abs(quantized - expected).mean() < 1.5 * cost
    assert np.abs(quantized - in_float).mean() < 1.2 * cost


_LOGITS_IN_FLOAT32 = """
import sys
from pathlib import Path
import numpy as np
from speechquant.core.bundles import load_bundle
from speechquant.core.processor import Processor
from speechquant.engines.openvino import plugin as openvino
from speechquant.engines.openvino.backend import OPENVINO_PACKAGE
openvino.read_processor = lambda: Processor("GenuineIntel", frozenset({"avx512_vnni"}))
feeds = dict(np.load(sys.argv[2]))
with OPENVINO_PACKAGE.open(load_bundle(Path(sys.argv[1])).only_graph, 1, None) as session:
    np.save(sys.argv[3], session.run(feeds)["logits"])
"""


@needs_openvino
@openvino_is_exact
def test_with_float32_between_the_layers_it_computes_what_the_cpu_provider_does(
    bundles: tuple[Bundle, Bundle], noise: NDArray[np.float32], tmp_path: Path
) -> None:
    in_float, quantized = bundles
    feeds = feeds_of(quantized.spec, [noise])
    np.savez(tmp_path / "feeds.npz", **feeds)  # type: ignore[arg-type]
    found = tmp_path / "logits.npy"
    # oneDNN reads once in a process which instructions it may use; no AMX with float32.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
    arguments = ["-c", _LOGITS_IN_FLOAT32, quantized.folder, tmp_path / "feeds.npz", found]
    subprocess.run([sys.executable, *map(str, arguments)], env=environment, check=True)
    with open_session(in_float, provider="cpu", threads=1) as session:
        reference = session.run(feeds)["logits"]
    with open_session(quantized, provider="cpu", threads=1) as session:
        expected = session.run(feeds)["logits"]
    # One value that a different order of sums tips over a half moves a whole step.
    assert np.abs(np.load(found) - expected).mean() < 0.3 * np.abs(reference - expected).mean()


@needs_openvino
@openvino_is_exact
def test_threads_that_share_a_session_get_what_they_get_alone(
    bundles: tuple[Bundle, Bundle],
) -> None:
    rng = np.random.default_rng(3)
    waves = [
        rng.standard_normal(int(length)).astype(np.float32)
        for length in rng.integers(4_000, 12_000, 40)
    ]
    _, quantized = bundles
    with OPENVINO_PACKAGE.open(quantized.only_graph, 1, None) as session:
        alone = [logits_of(session, quantized, wave) for wave in waves]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda wave: logits_of(session, quantized, wave), waves))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_openvino
def test_outputs_stay_when_the_session_runs_again_and_a_closed_one_says_so(
    tiny_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    session = OPENVINO_PACKAGE.open(tiny_bundle.only_graph, 1, None)
    with session, session:
        first = logits_of(session, tiny_bundle, noise)
        kept = first.copy()
        logits_of(session, tiny_bundle, noise[::-1].copy())
        np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(EngineError, match="this session is closed; open another"):
        logits_of(session, tiny_bundle, noise)


@needs_openvino
def test_a_graph_that_it_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    for graph in (b"no graph", tmp_path / "model.onnx"):
        with pytest.raises(EngineError, match="package openvino refuses the graph") as caught:
            OpenVinoSession(graph, {}, 1)
        assert "\n" not in str(caught.value)


def test_the_missing_package_is_named_with_its_install_line(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match="openvino is not installed: pip install openvino"
    ):
        OPENVINO_PACKAGE.open(tiny_bundle.only_graph, 1, None)


class FakeOpenVino:
    """Stands for the package: keeps what it is given to compile."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, str, dict[str, str]]] = []

    def Core(self) -> FakeOpenVino:  # noqa: N802
        return self

    def read_model(self, source: Any) -> Any:
        return source

    def compile_model(self, model: Any, device: str, settings: dict[str, str]) -> Any:
        self.given.append((model, device, settings))
        return SimpleNamespace(create_infer_request=object, outputs=[])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenVino]:
    package = FakeOpenVino()
    monkeypatch.setitem(sys.modules, "openvino", package)  # type: ignore[arg-type]
    monkeypatch.setattr(openvino_session, "find_spec", lambda name: object())
    yield package


def test_graph_and_settings_are_those_of_the_bundle(
    bundles: tuple[Bundle, Bundle], fake: FakeOpenVino, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float, quantized = bundles
    pretend(AMD_BFLOAT16, monkeypatch, openvino)
    OPENVINO_PACKAGE.open(in_float.only_graph, None, None)
    OPENVINO_PACKAGE.open(quantized.only_graph, 3, None)
    (path, device, plain), (graph, _, narrowed) = fake.given
    assert (path, device) == (str(in_float.only_graph.model_path), "CPU")
    assert plain == {"INFERENCE_PRECISION_HINT": "f32"}
    assert isinstance(graph, bytes)
    assert narrowed == {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("precision", "instructions", "is_refused"),
    [
        ("w8a8", {"avx2"}, True),
        ("w8a8", {"avx2", "avx_vnni"}, False),
        ("w8a8", {"avx512f", "amx_int8"}, False),
        ("fp32", {"avx2"}, False),
        ("w7a8", {"avx2"}, False),  # 2 * 63 * 255 fits into 16 bits
        ("w8a7", {"avx2"}, True),  # 2 * 127 * (128 + 63) does not
        ("w8a3", {"avx2"}, True),
        ("w8a2", {"avx2"}, False),
        ("w6a6", {"avx2"}, False),
    ],
)
def test_a_processor_on_which_sums_overflow_is_refused(
    precision: str,
    instructions: set[str],
    is_refused: bool,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = replace(tiny_bundle, spec=replace(tiny_bundle.spec, precision=precision))
    pretend(Processor("GenuineIntel", frozenset(instructions)), monkeypatch, openvino)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    if is_refused:
        with pytest.raises(EngineError, match="overflow on a processor without VNNI or AMX"):
            openvino.refuse_other_results(bundle.only_graph)
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        openvino.refuse_other_results(bundle.only_graph)  # another processor, other kernels
    else:
        openvino.refuse_other_results(bundle.only_graph)


@pytest.mark.parametrize("bits", [9, 16])
def test_what_openvino_would_not_round_is_refused(bits: int, tiny_bundle: Bundle) -> None:
    wide = replace(tiny_bundle, spec=replace(tiny_bundle.spec, precision=f"w8a{bits}"))
    with pytest.raises(EngineError, match=f"leaves activations of {bits} bits unrounded"):
        openvino.refuse_other_results(wide.only_graph)


@pytest.mark.parametrize("provider", ["openvino", "auto"])
def test_where_sums_overflow_the_cpu_provider_runs_and_says_why_once(
    provider: str,
    bundles: tuple[Bundle, Bundle],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend(INTEL_OLD, monkeypatch, openvino, registry)
    with open_session(bundles[1], provider=provider, threads=1) as session:
        assert session.provider == "cpu"
    (record,) = caplog.records
    assert record.getMessage() == (
        "warning: OpenVINO's sums of byte products overflow on a processor without VNNI or AMX; "
        "running on ONNX Runtime's own CPU provider instead"
    )


ALL_THREE = ["openvino-plugin", "openvino-package", "onnxruntime"]
CPU_ALONE = ALL_THREE[2:]


@pytest.mark.parametrize(
    ("provider", "processor", "expected"),
    [
        *(("openvino", processor, ALL_THREE) for processor in processors.ALL.values()),
        *(("cpu", processor, CPU_ALONE) for processor in processors.ALL.values()),
        *(("auto", processor, ALL_THREE) for processor in (INTEL_AMX, INTEL_VNNI, INTEL_OLD)),
        *(("auto", processor, CPU_ALONE) for processor in (AMD_BFLOAT16, AMD_OLD, ARM)),
    ],
)
def test_what_is_tried_in_which_order(
    provider: str,
    processor: Processor,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(processor, monkeypatch, registry)
    assert [backend.name for backend in backends_of(provider)] == expected


def failing(error: Exception) -> Callable[..., Session]:
    def fail(*_: object) -> Session:
        raise error

    return fail


def test_the_package_is_taken_where_the_plugin_fails_without_a_warning(
    tiny_bundle: Bundle,
    fake: FakeOpenVino,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replace_openers(monkeypatch, {"openvino-plugin": failing(EngineError("no device"))})
    with caplog.at_level(logging.INFO, "speechquant"):
        session = open_session(tiny_bundle, provider="openvino", threads=1)
    assert session.provider == "openvino"
    assert how_it_runs(session) == "OpenVINO in its own package"
    assert len(fake.given) == 1
    assert not caplog.records


def test_the_cpu_is_taken_where_both_fail_with_both_causes(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_openers(
        monkeypatch,
        {
            "openvino-plugin": failing(EngineError("no device")),
            "openvino-package": failing(MissingPackageError("not installed")),
        },
    )
    with open_session(tiny_bundle, provider="openvino", threads=1) as session:
        assert isinstance(session, OnnxRuntimeSession)
        assert how_it_runs(session) == "ONNX Runtime's CPU provider"
    (record,) = caplog.records
    assert record.getMessage() == (
        "warning: no device; not installed; running on ONNX Runtime's own CPU provider instead"
    )
