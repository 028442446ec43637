"""Building engines ahead of time with TensorRT-RTX, on a machine without a GPU, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_texts import options_from_text
from quantized import table_from_noise, w8a8
from shared_artifacts import SharedArtifacts

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine, Limits, load_engine
from speechquant.core.errors import (
    BundleError,
    EngineError,
    MissingPackageError,
    OptionError,
    OutputExistsError,
    ScaleError,
    StorageError,
)
from speechquant.core.scales import Bits
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions, batch_of, three_numbers
from speechquant.engines.ctc.graphs_to_build import limits_of
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.tensorrt import builder as tensorrt_builder
from speechquant.engines.tensorrt.layers import LayerReport, read_layers
from speechquant.engines.tensorrt.targets import current_capability, name_of
from speechquant.exporter import export
from speechquant.zoo.models import CTC_MODELS

ROOT = Path(__file__).parents[2]
SM86 = BuildOptions("tensorrt-rtx", "sm86", Limits(400, 16_000, 160_000), Limits(1, 1, 2))


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs speechquant[tensorrt-rtx]")


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return w8a8(tiny_bundle, tmp_path_factory.mktemp("build") / "w8a8")


def layers_of(engine: Engine) -> LayerReport:
    return read_layers(engine.folder / "layers.json")


def test_more_samples_than_a_tensor_can_have_are_refused(tiny_bundle: Bundle) -> None:
    options = options_from_text(tiny_bundle, backend="tensorrt-rtx", lengths="1,1,100000000")
    with pytest.raises(OptionError, match=r"4 clips of 100000000 s are more than 2\^31 samples"):
        limits_of(options, tiny_bundle.spec)


def with_weights(report: LayerReport) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (row["what"].split()[0], row["runs"]): (row["layers"], row["nodes"])
        for row in report.counts()
        if row["what"].endswith("with weights")
    }


@pytest.mark.usefixtures("rtx")
def test_the_engine_and_what_lies_beside_it(quantized: Bundle, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    engine = build_engine(
        quantized.folder,
        tmp_path / "engine",
        SM86,
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert set(engine.files) == {
        "model.engine", "build.log", "layers.json", "vocab.json", "tokenizer_config.json",
        "preprocessor_config.json",
    }  # fmt: skip
    assert engine == load_engine(tmp_path / "engine")
    manifest = engine.manifest
    assert (manifest.backend, manifest.target, manifest.float_type) == (
        "tensorrt-rtx",
        "sm86",
        "fp16",
    )
    assert manifest.source["model_sha256"] == quantized.model_sha256
    assert manifest.limits == {"samples": SM86.samples, "batch": SM86.batch}
    assert list(manifest.toolchain) == ["tensorrt-rtx"]
    assert engine.spec == quantized.spec
    assert steps and all(0 < done <= total for done, total in steps)
    assert "Layers:" in (engine.folder / "build.log").read_text()
    profile = (engine.folder / "build.log").read_text().split("Name: input_values, IOMode")[1]
    assert "MinShape: [1,400], OptShape: [1,16000], MaxShape: [2,160000]" in profile
    assert not list(tmp_path.glob(".*"))


# Blocks of two sizes would need two counts: 4 matrices of each block stay apart and Q, K, V, which
# read the same activation, become one.
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("float_type", "qdq_format"),
    [
        pytest.param(
            float_type,
            qdq_format,
            # Both formats are built from the same integers, as test_graph shows.
            marks=() if float_type == "fp16" or qdq_format is QdqFormat.S8 else pytest.mark.slow,
        )
        for float_type in ("fp16", "bf16", "fp32")
        for qdq_format in QdqFormat
    ],
)
def test_all_with_weights_are_int8(
    tiny_bundle: Bundle, tmp_path: Path, float_type: str, qdq_format: QdqFormat
) -> None:
    bundle = w8a8(tiny_bundle, tmp_path / "w8a8", qdq_format)
    engine = build_engine(
        bundle, tmp_path / "e", BuildOptions("tensorrt-rtx", "sm86", float_type=float_type)
    )
    report = layers_of(engine)
    counted = with_weights(report)
    assert {runs for _, runs in counted} == {"INT8 x INT8"}
    assert counted["convolution", "INT8 x INT8"] == (8, 8)
    # The projection, 6 in each of 2 blocks, the head.
    assert counted["matmul", "INT8 x INT8"][1] == 1 + 2 * 6 + 1
    others = [row for row in report.counts() if row["what"].endswith("of activations")]
    assert sum(row["nodes"] for row in others) == 2 * 2
    assert all(float_type.upper() in row["runs"] for row in others)


@pytest.mark.usefixtures("rtx")
def test_attention_is_int8_too_where_the_table_has_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    table = table_from_noise(tiny_bundle, attention=True)
    bundle = quantize_bundle(tiny_bundle, tmp_path / "w8a8", table)
    report = layers_of(build_engine(bundle, tmp_path / "engine", SM86))
    others = [row for row in report.counts() if row["what"].endswith("of activations")]
    # Both products in each of 2 blocks, no longer fused into one.
    assert [(row["runs"], row["layers"], row["nodes"]) for row in others] == [
        ("INT8 x INT8", 2 * 2, 2 * 2)
    ]


@pytest.mark.usefixtures("rtx")
def test_a_float_bundle_is_built_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    engine = build_engine(tiny_bundle, tmp_path / "engine", SM86)
    report = layers_of(engine)
    counted = with_weights(report)
    assert sum(nodes for _, nodes in counted.values()) == 8 + 14
    assert {runs for _, runs in counted} == {"FP16 x FP16"}
    assert not any(placed.falls_back for placed in report.placed())
    assert engine.manifest.source["precision"] == "fp32"


@pytest.mark.usefixtures("rtx")
def test_turing_falls_back_and_the_report_says_so(quantized: Bundle, tmp_path: Path) -> None:
    options = BuildOptions("tensorrt-rtx", "t4")
    report = layers_of(build_engine(quantized, tmp_path / "engine", options))
    fallen = {placed.product.operator for placed in report.placed() if placed.falls_back}
    assert fallen == {"Conv"}


@pytest.mark.usefixtures("rtx")
@pytest.mark.slow
@pytest.mark.parametrize("name", CTC_MODELS)
def test_zoo_models_are_int8_throughout(name: str, shared: SharedArtifacts, tmp_path: Path) -> None:
    bundle = w8a8(shared.zoo_bundle(name), tmp_path / "w8a8")
    engine = build_engine(bundle, tmp_path / "engine", BuildOptions("tensorrt-rtx", "rtx3090"))
    # 4 blocks: Q, K and V as one, out_proj and 2 of the feed forward; the projection and the head.
    assert with_weights(layers_of(engine)) == {
        ("convolution", "INT8 x INT8"): (8, 8),
        ("matmul", "INT8 x INT8"): (4 * 4 + 2, 4 * 6 + 2),
    }
    assert bool(engine.manifest.float32_nodes) == (name == "wav2vec2")  # its group norm


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_hubert_base_is_int8_throughout(tmp_path: Path) -> None:
    bundle = w8a8(export("random:hubert-base", tmp_path / "fp32"), tmp_path / "w8a8")
    expected = {
        ("convolution", "INT8 x INT8"): (8, 8),
        ("matmul", "INT8 x INT8"): (12 * 4 + 2, 12 * 6 + 2),
    }
    for float_type, layers in (("fp16", 12), ("fp32", 24)):
        options = BuildOptions("tensorrt-rtx", "sm86", float_type=float_type)
        report = layers_of(build_engine(bundle, tmp_path / f"engine-{float_type}", options))
        assert with_weights(report) == expected
        attention = [row for row in report.counts() if row["what"] == "matmul of activations"]
        # In float16 TensorRT fuses both products of an attention into one kernel.
        assert [(row["layers"], row["nodes"]) for row in attention] == [(layers, 24)]


@pytest.mark.gpu
def test_tensorrt_on_this_gpu(quantized: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs speechquant[tensorrt]", exc_type=ImportError)
    try:
        target = name_of(current_capability())
    except EngineError as error:
        pytest.skip(str(error))
    engine = build_engine(quantized, tmp_path / "engine", BuildOptions("tensorrt"))
    assert engine.manifest.target == target
    assert not any(placed.falls_back for placed in layers_of(engine).placed())


def test_the_script(quantized: Bundle, tmp_path: Path, rtx: Any) -> None:
    command = [sys.executable, ROOT / "engines" / "build.py", quantized.folder, tmp_path / "engine"]
    command += ["--backend", "tensorrt-rtx", "--target", "rtx4090", "--lengths", "0.1,1,2"]
    command += ["--batch", "2"]
    done = subprocess.run(command, text=True, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorrt-rtx for sm89" in done.stdout
    manifest = load_engine(tmp_path / "engine").manifest
    assert manifest.limits == {"samples": Limits(1600, 16_000, 32_000), "batch": Limits(2, 2, 2)}
    assert manifest.toolchain == {"tensorrt-rtx": rtx.__version__}


def test_the_script_says_errors_on_one_line(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "engines" / "build.py", tmp_path, tmp_path / "out"]
    done = subprocess.run(
        [*script, "--backend", "tensorrt-rtx"], text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "no bundle.json" in lines[0]


# What is refused; nothing of OUT may be left.
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "gtx1080"}, OptionError, "'gtx1080' is no target"),
        ({"target": "h100"}, OptionError, r"target sm90: TensorRT-RTX .* builds for .*sm86"),
        ({"target": "sm75", "float_type": "bf16"}, OptionError, "target sm75 has no bf16"),
        ({"lengths": "0.02,1,2"}, OptionError, r"320 samples \(0.020 s\), the model needs 400"),
        ({"lengths": "2,1,3"}, OptionError, r"lengths are 32000, 16000, 48000; give the least"),
        ({"lengths": "1,2"}, OptionError, "lengths is '1,2'; give MIN,OPT,MAX"),
        ({"lengths": "nan"}, OptionError, "lengths is 'nan'"),
        ({"batch": "0,1,2"}, OptionError, "the least of batch is 0; give at least 1"),
        ({"batch": "1.5"}, OptionError, "batch is '1.5'; give whole numbers"),
        (
            {"float_type": "int4"},
            OptionError,
            "float type is 'int4'; choose fp16, bf16, fp32",
        ),
        ({"backend": "cuda"}, OptionError, "no backend 'cuda'; choose tensorrt"),
        ({"timing_cache": Path("t")}, OptionError, "--timing-cache: TensorRT-RTX has no such"),
        ({"version_compatible": True}, OptionError, "--version-compatible: TensorRT-RTX has no"),
        ({"hardware_compatible": True}, OptionError, "--hardware-compatible: TensorRT-RTX has"),
    ],
)
def test_refused_options(
    quantized: Bundle, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    asked: dict[str, Any] = {"backend": "tensorrt-rtx", "target": "sm86", **changes}
    with pytest.raises(error, match=message):
        build_engine(quantized, tmp_path / "out", options_from_text(quantized, **asked))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_current_needs_a_gpu(
    quantized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise EngineError("no GPU to build for")

    monkeypatch.setattr(tensorrt_builder, "current_capability", none)
    with pytest.raises(EngineError, match="no GPU to build for"):
        build_engine(quantized, tmp_path / "out", BuildOptions("tensorrt-rtx"))
    assert not list(tmp_path.iterdir())


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle\.json in it"):
        build_engine(tmp_path, tmp_path / "out", SM86)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_no_library(
    quantized: Bundle, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechquant.core.onnx_files.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'speechquant\[{backend}\]'"):
        build_engine(quantized, tmp_path / "out", BuildOptions(backend, "sm86"))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_out_is_there(quantized: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="already there"):
        build_engine(quantized, tmp_path / "out", SM86)
    with pytest.raises(OutputExistsError, match=r"not made by this command \(no engine.json"):
        build_engine(quantized, tmp_path / "out", SM86, force=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.usefixtures("rtx")
def test_a_full_disk(quantized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorrt_builder, "save_graph", full)
    with pytest.raises(StorageError, match="the disk is full"):
        build_engine(quantized, tmp_path / "out", SM86)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_a_log_that_cannot_be_written_is_an_error(
    quantized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tensorrt_builder.BuildLog.write

    def full(log: Any, severity: str, message: str) -> None:
        write(log, severity, message)
        log.disk_error = OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorrt_builder.BuildLog, "write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        build_engine(quantized, tmp_path / "out", SM86)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_what_the_library_says_is_in_the_error(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = build_graph = tensorrt_builder.tensorrt_graph

    def spoilt(*arguments: Any, **options: Any) -> Any:
        made = graph(*arguments, **options)
        next(iter(made.model.graph)).op_type = "NoSuchOperator"
        return made

    assert build_graph is graph
    monkeypatch.setattr(tensorrt_builder, "tensorrt_graph", spoilt)
    with pytest.raises(EngineError, match=r"cannot read the graph for sm86: .*NoSuchOperator"):
        build_engine(tiny_bundle, tmp_path / "out", SM86)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("bits", "name"), [(4, "w4a4"), (16, "w16a16")])
def test_other_widths(tiny_bundle: Bundle, tmp_path: Path, bits: int, name: str) -> None:
    table = table_from_noise(tiny_bundle, Bits(bits, bits))
    bundle = quantize_bundle(tiny_bundle, tmp_path / "bundle", table)
    with pytest.raises(OptionError, match=rf"is {name}, and TensorRT multiplies integers of 8"):
        build_engine(bundle, tmp_path / "out", SM86)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("rtx")
def test_an_asymmetric_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace

    table = table_from_noise(tiny_bundle)
    rows = {name: replace(row, zero_point=100) for name, row in table.tensors.items()}
    bundle = quantize_bundle(
        tiny_bundle, tmp_path / "bundle", replace(table, symmetric=False, tensors=rows)
    )
    with pytest.raises((BundleError, OptionError, ScaleError, EngineError), match="asymmetric"):
        build_engine(bundle, tmp_path / "out", SM86)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("rtx")
def test_a_truncated_plan_and_an_altered_manifest(quantized: Bundle, tmp_path: Path) -> None:
    folder = build_engine(quantized, tmp_path / "engine", SM86).folder
    truncated = Path(shutil.copytree(folder, tmp_path / "truncated"))
    plan = truncated / "model.engine"
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(EngineError, match=r"model.engine: altered or truncated"):
        load_engine(truncated)
    document = json.loads((folder / "engine.json").read_text())
    document["manifest"]["target"] = "sm89"
    (folder / "engine.json").write_text(json.dumps(document))
    with pytest.raises(EngineError, match=r"engine.json: altered since it was written"):
        load_engine(folder)


def test_defaults_are_a_tenth_of_a_second_to_thirty(tiny_bundle: Bundle) -> None:
    limits = limits_of(BuildOptions("tensorrt"), tiny_bundle.spec)
    assert limits == {"samples": Limits(1600, 160_000, 480_000), "batch": Limits(1, 1, 4)}


def test_numbers_of_a_command_line() -> None:
    assert three_numbers("0.5,1,2", "lengths") == (0.5, 1.0, 2.0)
    assert three_numbers("3", "lengths") == (3.0, 3.0, 3.0)
    assert batch_of("1,4,8") == Limits(1, 4, 8)
