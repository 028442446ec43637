"""OpenVINO as a provider: what is missing is told, what is there computes the same."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from processors import ALL
from quantized import openvino_is_exact, w8a8
from shared_artifacts import SharedArtifacts

from speechquant.core import onnx_files
from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError, MissingPackageError
from speechquant.core.processor import Processor
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession
from speechquant.engines.openvino import opening
from speechquant.engines.openvino import plugin as openvino
from speechquant.engines.openvino import session as openvino_session
from speechquant.engines.openvino.plugin import add_openvino, float_type
from speechquant.engines.session import open_session


@pytest.fixture(scope="module")
def device() -> Any:
    """OpenVINO's, or the test is skipped with what is missing."""
    try:
        return openvino._cpu_device()
    except (EngineError, MissingPackageError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["hubert-layer", "wav2vec2-group"])
def bundles(
    request: pytest.FixtureRequest,
    shared: SharedArtifacts,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Bundle, Bundle]:
    bundle = shared.bundle(request.param)
    return bundle, w8a8(bundle, tmp_path_factory.mktemp(request.param) / "w8a8")


def logits_of(bundle: Bundle, provider: str, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    with open_session(bundle, provider=provider, threads=1) as opened:
        assert opened.provider == provider
        assert provider == "cpu" or isinstance(opened, OnnxRuntimeSession), "not in the plugin"
        logits: NDArray[np.float32] = opened.run(feeds_of(bundle.spec, [wave]))["logits"]
    return logits


@openvino_is_exact
def test_it_computes_what_the_other_provider_does(
    device: Any, bundles: tuple[Bundle, Bundle], noise: NDArray[np.float32]
) -> None:
    in_float, quantized = bundles
    reference = logits_of(in_float, "cpu", noise)
    np.testing.assert_allclose(logits_of(in_float, "openvino", noise), reference, atol=1e-4)
    expected = logits_of(quantized, "cpu", noise)
    found = logits_of(quantized, "openvino", noise)
    # With bfloat16 between the layers other values tip over a half. Two roundings that have nothing
    # in common differ by the square root of 2 times what each of them costs.
    cost = np.abs(reference - expected).mean()
    assert np.abs(found - expected).mean() < 1.5 * cost
    assert np.abs(found - reference).mean() < 1.2 * cost


@pytest.fixture
def registered_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine with the package and no device of OpenVINO's, whatever this one is."""
    library = SimpleNamespace(get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, openvino.PACKAGE, library)
    monkeypatch.setattr(openvino, "require_packages", lambda *_, **__: None)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)
    yield monkeypatch


def configure(bundle: Bundle) -> None:
    add_openvino(onnxruntime.SessionOptions(), bundle.only_graph, 1)


def test_a_missing_package_is_named_with_its_install_line(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'speechquant\[openvino\]'"):
        configure(tiny_bundle)


def test_a_processor_that_it_does_not_take_is_named(
    tiny_bundle: Bundle, registered_nothing: pytest.MonkeyPatch
) -> None:
    amd = Processor("AuthenticAMD", frozenset())
    registered_nothing.setattr(openvino, "read_processor", lambda: amd)
    with pytest.raises(EngineError, match=r"no device on this processor \(AuthenticAMD\)"):
        configure(tiny_bundle)


def test_a_plugin_that_cannot_be_registered_is_told_with_the_reason(
    tiny_bundle: Bundle, registered_nothing: pytest.MonkeyPatch
) -> None:
    def fail(name: str, path: str) -> None:
        raise RuntimeError(f"Failed to load library {path}")

    registered_nothing.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(EngineError, match=r"registered \(Failed to load library plugin.so\)"):
        configure(tiny_bundle)


def test_an_old_onnxruntime_is_told(
    tiny_bundle: Bundle, registered_nothing: pytest.MonkeyPatch
) -> None:
    registered_nothing.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(EngineError, match=r"pip install 'onnxruntime>=1.23'"):
        configure(tiny_bundle)


@pytest.mark.parametrize("threads", [None, 3])
def test_threads_and_float_type_are_passed_on(
    tiny_bundle: Bundle, registered_nothing: pytest.MonkeyPatch, threads: int | None
) -> None:
    given: list[dict[str, str]] = []
    options = SimpleNamespace(
        add_provider_for_devices=lambda devices, settings: given.append(settings),
        add_session_config_entry=lambda name, value: None,
    )
    registered_nothing.setattr(openvino, "_cpu_device", lambda: None)
    add_openvino(options, tiny_bundle.only_graph, threads)  # type: ignore[arg-type]
    settings = json.loads(given[0]["load_config"])["CPU"]
    assert settings.get("INFERENCE_NUM_THREADS") == (None if threads is None else "3")
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"


def test_only_a_quantized_bundle_is_narrowed_and_only_where_it_pays(tiny_bundle: Bundle) -> None:
    quantized = replace(tiny_bundle, spec=replace(tiny_bundle.spec, precision="w8a8"))
    narrowed = {
        name for name, found in ALL.items() if float_type(quantized.only_graph, found) == "bf16"
    }
    assert narrowed == {"Intel, AMX", "AMD, VNNI and bfloat16"}
    assert {float_type(tiny_bundle.only_graph, found) for found in ALL.values()} == {"f32"}


def test_a_graph_that_openvino_refuses_runs_on_the_cpu_with_a_warning(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(opening.OnnxRuntimeSession):
        def __init__(self, graph: Path, options: Any, provider: str = "cpu") -> None:
            if provider == "openvino":
                raise RuntimeError("NotFound: Unsupported property\n by CPU plugin.")
            super().__init__(graph, options, provider)

    monkeypatch.setattr(opening, "OnnxRuntimeSession", Refusing)
    monkeypatch.setattr(openvino_session, "find_spec", lambda name: None)
    monkeypatch.setattr(openvino, "_cpu_device", lambda: None)
    monkeypatch.setattr(
        onnxruntime.SessionOptions, "add_provider_for_devices", lambda *_: None, raising=False
    )
    with (
        caplog.at_level(logging.WARNING, "speechquant"),
        open_session(tiny_bundle, provider="openvino", threads=1) as opened,
    ):
        assert opened.provider == "cpu"
    assert (
        "OpenVINO's plugin refuses the graph (NotFound: Unsupported property by CPU plugin.)"
        in (caplog.text)
    )
