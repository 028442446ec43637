"""What TensorRT of each version is asked for, told to a stand-in that only writes it down.

No version of it can build here, without a GPU; these tests hold which of its names are used in
which version, as its documentation and bindings have them. What it makes of them is tested by the
tests marked gpu.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from quantized import w8a8

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine, Limits
from speechquant.core.errors import EngineError, OptionError
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.tensorrt import builder as tensorrt_builder
from speechquant.engines.tensorrt.library import Library

LAYER = (
    "Layers:\nName: conv, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, "
    "Dimensions: [1,2,3], Format/Datatype: Half }], Outputs: [ { Name: y, Location: Device, "
    "Dimensions: [1,2,3], Format/Datatype: Half }], ParameterType: Convolution"
)


class Recorder:
    """An object that keeps what is set on it and called."""

    def __init__(self, **answers: Any) -> None:
        self.__dict__.update(calls=[], **answers)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self.calls.append((name, *arguments))

        return call


class Layer:
    """A layer whose precision can be set."""

    def __init__(self, name: str) -> None:
        self.name, self.precision = name, None


class FakeTensorRt:
    """The names of one version of TensorRT."""

    float32 = "float32"

    def __init__(self, version: str, layers: list[str], plan: bytes | None = b"plan") -> None:
        major, minor = (int(part) for part in version.split(".")[:2])
        self.__version__, self.plan = version, plan
        self.ILogger = type("ILogger", (), {})
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        flags = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if major < 11 else []
        creation = {"EXPLICIT_BATCH": 0} if major < 11 else {}
        if (major, minor) >= (8, 6):
            flags.append("VERSION_COMPATIBLE")
            self.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere")
        if major >= 10:
            creation["STRONGLY_TYPED"] = 1
        self.BuilderFlag = SimpleNamespace(**{name: name for name in flags})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**creation)
        self.profile, self.config = Recorder(), Recorder()
        self.layers = [Layer(name) for name in layers]
        self.network_flags: int | None = None
        self.graph = b""

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        def network(flags: int) -> Any:
            self.network_flags = flags
            return Recorder(num_layers=len(self.layers), get_layer=self.layers.__getitem__)

        def plan(network: Any, config: Any) -> bytes | None:
            logger.log("Severity.VERBOSE", LAYER)
            if self.plan is None:
                logger.log("Severity.ERROR", "out of\nmemory")
            return self.plan

        return SimpleNamespace(
            create_network=network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: self.profile,
            build_serialized_network=plan,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        def parse(path: str) -> bool:
            self.graph = Path(path).read_bytes()
            return True

        return SimpleNamespace(parse_from_file=parse)


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return w8a8(tiny_bundle, tmp_path_factory.mktemp("fake") / "w8a8")


def build_with(
    trt: FakeTensorRt, bundle: Bundle, out: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> Engine:
    monkeypatch.setattr(tensorrt_builder, "load_library", lambda backend: Library(backend, trt))
    monkeypatch.setattr(tensorrt_builder, "current_capability", lambda: (8, 6))
    samples = Limits(400, 16_000, 48_000)
    return build_engine(
        bundle, out, BuildOptions("tensorrt", samples=samples, batch=Limits(1, 2, 4), **asked)
    )


def opset_of(trt: FakeTensorRt) -> int:
    import onnx

    return int(onnx.load_model_from_string(trt.graph).opset_import[0].version)


@pytest.mark.parametrize(
    ("version", "flags"),
    # Bit 0 is EXPLICIT_BATCH, bit 1 STRONGLY_TYPED.
    [("8.5.3.1", 0b01), ("8.6.1", 0b01), ("10.13.2", 0b11), ("11.2.0", 0b10)],
)
def test_network_flags_of_each_version(
    version: str, flags: int, quantized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRt(version, [])
    engine = build_with(trt, quantized, tmp_path / "out", monkeypatch)
    assert trt.network_flags == flags
    assert engine.manifest.target == "sm86"
    assert engine.manifest.toolchain == {"tensorrt": version}
    assert engine.only_graph.engine_path.read_bytes() == b"plan"
    assert trt.config.profiling_verbosity == "detailed"
    assert trt.profile.calls == [
        ("set_shape", "input_values", (1, 400), (2, 16_000), (4, 48_000)),
        ("set_shape", "input_lengths", (1,), (2,), (4,)),
    ]


def test_before_10_the_graph_is_in_opset_17_and_types_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    trt = FakeTensorRt("8.5.3.1", ["node_layer_norm_3", "node_conv1d", "(Unnamed)"])
    engine = build_with(trt, quantized, tmp_path / "out", monkeypatch)
    assert opset_of(trt) == 17
    assert [call for call in trt.config.calls if call[0] == "set_flag"] == [
        ("set_flag", "INT8"), ("set_flag", "FP16"), ("set_flag", "OBEY_PRECISION_CONSTRAINTS"),
    ]  # fmt: skip
    # Of a layer norm spelled out, node 3 is the mean of the squares.
    assert "node_layer_norm_3" in engine.manifest.float32_nodes
    assert [layer.precision for layer in trt.layers] == ["float32", None, None]


def test_since_10_the_graph_says_every_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    trt = FakeTensorRt("10.13.2", ["node_layer_norm_3"])
    build_with(trt, quantized, tmp_path / "out", monkeypatch)
    assert opset_of(trt) == 20
    assert not [call for call in trt.config.calls if call[0] == "set_flag"]
    assert trt.layers[0].precision is None


def test_compatibility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle) -> None:
    trt = FakeTensorRt("10.13.2", [])
    asked = {"version_compatible": True, "hardware_compatible": True}
    engine = build_with(trt, quantized, tmp_path / "out", monkeypatch, **asked)
    assert ("set_flag", "VERSION_COMPATIBLE") in trt.config.calls
    assert trt.config.hardware_compatibility_level == "ampere"
    assert asked.items() <= engine.manifest.settings.items()


@pytest.mark.parametrize("asked", ["version_compatible", "hardware_compatible"])
def test_compatibility_that_8_5_lacks(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    option = "--" + asked.replace("_", "-")
    with pytest.raises(OptionError, match=f"{option}: TensorRT 8.5.3.1 has no such thing, 8.6 has"):
        trt = FakeTensorRt("8.5.3.1", [])
        build_with(trt, quantized, tmp_path / "out", monkeypatch, **{asked: True})


def test_no_bfloat16_before_10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    with pytest.raises(OptionError, match=r"bf16: TensorRT 8.6.1 has none"):
        trt = FakeTensorRt("8.6.1", [])
        build_with(trt, quantized, tmp_path / "out", monkeypatch, float_type="bf16")


def test_only_for_the_gpu_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    trt = FakeTensorRt("10.13.2", [])
    with pytest.raises(
        OptionError, match=r"target sm89: .* this one is sm86; build there, or with"
    ):
        build_with(trt, quantized, tmp_path / "out", monkeypatch, target="rtx4090")


def test_timings_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    trt, file = FakeTensorRt("10.13.2", []), tmp_path / "timings"
    file.write_bytes(b"before")
    given: list[bytes] = []
    cache = SimpleNamespace(serialize=lambda: b"after")
    trt.config.__dict__.update(
        create_timing_cache=lambda known: given.append(known) or cache,
        set_timing_cache=lambda cache, ignore_mismatch: True,
        get_timing_cache=lambda: cache,
    )
    build_with(trt, quantized, tmp_path / "out", monkeypatch, timing_cache=file)
    assert given == [b"before"]
    assert file.read_bytes() == b"after"
    trt.config.__dict__.update(set_timing_cache=lambda cache, ignore_mismatch: False)
    with pytest.raises(OptionError, match="timings: no timing cache of this GPU"):
        build_with(trt, quantized, tmp_path / "two", monkeypatch, timing_cache=file)


def test_no_engine_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Bundle
) -> None:
    trt = FakeTensorRt("10.13.2", [], plan=None)
    with pytest.raises(EngineError, match=r"built no engine for sm86: out of memory"):
        build_with(trt, quantized, tmp_path / "out", monkeypatch)
    assert not list(tmp_path.iterdir())
