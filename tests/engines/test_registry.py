from __future__ import annotations

from dataclasses import replace

import pytest
from processors import AMD_BFLOAT16, INTEL_AMX, pretend

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import MODEL
from speechquant.core.errors import EngineError, OptionError
from speechquant.engines import BuildOptions, build_engine, open_session, registry
from speechquant.engines.backends import Backend
from speechquant.engines.onnxruntime.backend import ONNXRUNTIME
from speechquant.engines.registry import backends_of, engine_backends, first_of, provider_names
from speechquant.engines.tensorrt.backend import TENSORRT


def test_what_is_read_from_the_list() -> None:
    assert provider_names() == ("cpu", "openvino")
    assert list(engine_backends()) == ["tensorrt", "tensorrt-rtx", "onnxruntime"]
    assert first_of("openvino").library == "OpenVINO"
    assert first_of("openvino").how == "OpenVINO through ONNX Runtime"
    assert first_of("cpu").how == "ONNX Runtime's CPU provider"


@pytest.mark.parametrize(
    ("name", "alone", "encoder"),
    [
        ("onnxruntime", "engine.onnx", "encoder.onnx"),
        ("tensorrt", "model.engine", "encoder.engine"),
        ("tensorrt-rtx", "model.engine", "encoder.engine"),
    ],
)
def test_the_files_of_engines(name: str, alone: str, encoder: str) -> None:
    engines = engine_backends()[name].engines
    assert engines is not None
    assert (engines.file_of(MODEL), engines.file_of("encoder")) == (alone, encoder)


def test_what_takes_engines_alone_opens_no_bundle(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="tensorrt runs engines alone; build one for it"):
        TENSORRT.open_graph(tiny_bundle.only_graph, 1, None)


def test_one_more_record_is_a_provider_and_a_backend(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(
        ONNXRUNTIME, name="other", provider="elsewhere", suits=lambda processor: processor.is_intel
    )
    backends: tuple[Backend, ...] = (other, *registry.BACKENDS)
    monkeypatch.setattr(registry, "BACKENDS", backends)
    assert provider_names() == ("cpu", "openvino", "elsewhere")
    assert [one.name for one in backends_of("elsewhere")] == ["other", "onnxruntime"]
    for processor, is_first in ((INTEL_AMX, True), (AMD_BFLOAT16, False)):
        pretend(processor, monkeypatch, registry)
        assert (backends_of("auto")[0] is other) == is_first
    with open_session(tiny_bundle, provider="elsewhere", threads=1) as session:
        assert session.provider == "cpu"  # what the borrowed `open` says
    with pytest.raises(OptionError, match="choose auto, cpu, openvino, elsewhere"):
        open_session(tiny_bundle, provider="nowhere")
    with pytest.raises(OptionError, match="choose other, tensorrt, tensorrt-rtx, onnxr"):
        build_engine(tiny_bundle, tiny_bundle.folder / "out", BuildOptions("nothing"))
