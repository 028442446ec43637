from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import MANIFEST, engine_of

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine, Limits
from speechquant.core.errors import EngineError, OptionError, OutputExistsError
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.triton.config import text_of
from speechquant.engines.triton.repository import TritonOptions, write_repository


def files_in(folder: Path) -> set[str]:
    """The files beside the code."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if "speechquant" not in path.parts}


def config_of(folder: Path) -> dict[str, Any]:
    """What a config.pbtxt says, read apart by hand: names that occur again become lists."""
    return message(iter((folder / "config.pbtxt").read_text().splitlines()))


def message(lines: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in lines:
        if line.strip() == "}":
            break
        name, _, value = line.strip().partition(" ")
        one = message(lines) if value == "{" else value
        found.setdefault(name.removesuffix(":"), []).append(one)
    return found


def tensors(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    return {row["name"][0].strip('"'): (row["data_type"][0], row["dims"]) for row in rows}


def told(config: Mapping[str, Any]) -> dict[str, str]:
    rows = config.get("parameters", [])
    return {row["key"][0]: row["value"][0]["string_value"][0] for row in rows}


def test_a_bundle_is_all_in_the_python_backend(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = TritonOptions("asr", most_clips=4, most_wait_ms=7.5, instances=2, threads=3)
    written = write_repository(tiny_bundle, tmp_path / "out", options)
    assert written.models == ("asr",)
    folder = tmp_path / "out"
    model = {f"asr/1/model/{name}" for name in (*tiny_bundle.files, "bundle.json")}
    assert files_in(folder) == {
        "speechquant.json", "requirements.txt", "asr/config.pbtxt", "asr/1/model.py", *model
    }  # fmt: skip
    config = config_of(folder / "asr")
    assert config["name"] == ['"asr"'] and config["backend"] == ['"python"']
    assert config["max_batch_size"] == ["4"]
    assert tensors(config["input"]) == {
        "AUDIO": ("TYPE_FP32", ["-1"]), "SAMPLES": ("TYPE_INT32", ["1"])
    }  # fmt: skip
    assert config["input"][0]["allow_ragged_batch"] == config["input"][1]["optional"] == ["true"]
    assert tensors(config["output"]) == {"TEXT": ("TYPE_STRING", ["1"])}
    assert config["dynamic_batching"] == [{"max_queue_delay_microseconds": ["7500"]}]
    assert config["instance_group"] == [{"count": ["2"], "kind": ["KIND_CPU"]}]
    assert told(config) == {'"threads"': '"3"'}


def test_the_graph_of_a_bundle_for_onnxruntime(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = TritonOptions("asr", "onnxruntime", instances=2)
    written = write_repository(tiny_bundle, tmp_path / "out", options)
    assert written.models == ("asr", "asr-graph")
    assert written.requirements == ("numpy>=1.26,<2",)
    out = tmp_path / "out"
    # The graph is there once, with the backend that runs it.
    assert [path.parent.parent.name for path in out.rglob("*.onnx")] == ["asr-graph"]
    assert told(config_of(out / "asr")) == {
        '"graph"': '"asr-graph"', '"graph_lengths_type"': '"int64"'
    }  # fmt: skip
    config = config_of(out / "asr-graph")
    assert config["backend"] == ['"onnxruntime"'] and config["max_batch_size"] == ["0"]
    (file,) = config["default_model_filename"]
    graph = out / "asr-graph" / "1" / file.strip('"')
    assert graph.read_bytes() == tiny_bundle.only_graph.model_path.read_bytes()
    assert_as_onnx_has_it(graph, config)
    assert config["instance_group"] == [{"count": ["2"], "kind": ["KIND_CPU"]}]


def assert_as_onnx_has_it(graph: Path, config: Mapping[str, Any]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
    for field, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert tensors(config[field]) == {
            value.name: (
                kinds[value.type],
                [str(size) if isinstance(size, int) else "-1" for size in value.shape],
            )
            for value in values
        }


@pytest.mark.parametrize(("version", "kind"), [("8.6.1", "int32"), ("10.3.0", "int64")])
def test_a_tensorrt_engine(tiny_bundle: Bundle, tmp_path: Path, version: str, kind: str) -> None:
    manifest = replace(MANIFEST, toolchain={"tensorrt": version})
    engine = engine_of(tiny_bundle, tmp_path / "engine", manifest)
    write_repository(engine, tmp_path / "out", TritonOptions("asr", "tensorrt"))
    assert files_in(tmp_path / "out" / "asr") == {
        "config.pbtxt", "1/model.py", "1/model/engine.json", "1/model/vocab.json"
    }  # fmt: skip
    assert files_in(tmp_path / "out" / "asr-graph") == {"config.pbtxt", "1/model.engine"}
    assert told(config_of(tmp_path / "out" / "asr"))['"graph_lengths_type"'] == f'"{kind}"'
    config = config_of(tmp_path / "out" / "asr-graph")
    assert config["backend"] == ['"tensorrt"']
    assert config["default_model_filename"] == ['"model.engine"']
    assert config["instance_group"] == [{"count": ["1"], "kind": ["KIND_GPU"]}]
    lengths = tensors(config["input"])["input_lengths"]
    assert lengths == (f"TYPE_{kind.upper()}", ["-1"])


def test_a_whisper_model_is_told_its_language(whisper_bundle: Bundle, tmp_path: Path) -> None:
    decoding = DecodingOptions(language="en", task="translate")
    options = TritonOptions("whisper", decoding=decoding)
    written = write_repository(whisper_bundle, tmp_path / "out", options)
    config = config_of(tmp_path / "out" / "whisper")
    assert told(config) == {'"language"': '"en"', '"task"': '"translate"'}
    assert "tokenizers>=0.20" in written.requirements
    with pytest.raises(OptionError, match="no language of"):
        options = TritonOptions("w", decoding=DecodingOptions(language="xx"))
        write_repository(whisper_bundle, tmp_path / "other", options)
    with pytest.raises(OptionError, match="leave --backend onnxruntime out"):
        write_repository(whisper_bundle, tmp_path / "other", TritonOptions("w", "onnxruntime"))
    assert not (tmp_path / "other").exists()


def test_what_triton_cannot_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    rtx = replace(
        MANIFEST, backend="tensorrt-rtx", toolchain={"tensorrt-rtx": "1.7.1"}, float_type="fp16"
    )
    many = replace(MANIFEST, limits={"batch": Limits(2, 4, 4)})
    out = tmp_path / "out"
    with pytest.raises(EngineError, match="Triton has no backend for TensorRT-RTX"):
        write_repository(
            engine_of(tiny_bundle, tmp_path / "rtx", rtx), out, TritonOptions("a", "tensorrt")
        )
    with pytest.raises(EngineError, match="runs in onnxruntime; give an engine that"):
        write_repository(tiny_bundle, out, TritonOptions("a", "tensorrt"))
    with pytest.raises(EngineError, match="no fewer than 2 clips"):
        write_repository(
            engine_of(tiny_bundle, tmp_path / "two", many), out, TritonOptions("a", "tensorrt")
        )
    with pytest.raises(OptionError, match="not a Whisper model"):
        options = TritonOptions("a", decoding=DecodingOptions(language="en"))
        write_repository(tiny_bundle, out, options)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "a b"}, "give --name with letters"),
        ({"name": "../a"}, "give --name with letters"),
        ({"name": "a", "backend": "onnxruntim"}, "did you mean onnxruntime"),
        ({"name": "a", "backend": "onnxruntime", "threads": 2}, "are for --backend python"),
        ({"name": "a", "most_wait_ms": float("inf")}, "--max-wait-ms is inf"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        TritonOptions(**options)


def test_only_its_own_output_is_replaced(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", TritonOptions("asr")
    write_repository(tiny_bundle, out, options)
    with pytest.raises(OutputExistsError, match="--force"):
        write_repository(tiny_bundle, out, options)
    write_repository(tiny_bundle, out, TritonOptions("other"), force=True)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["other"]
    other = tmp_path / "mine"
    (other / "model").mkdir(parents=True)
    (other / "model" / "config.pbtxt").touch()
    with pytest.raises(OutputExistsError, match="not made by this command"):
        write_repository(tiny_bundle, other, options, force=True)
    # A failure in the middle leaves what was there.
    broken = replace(tiny_bundle, files={**tiny_bundle.files, "lost.onnx": ""})
    with pytest.raises(FileNotFoundError):
        write_repository(broken, out, options, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    assert (out / "other" / "config.pbtxt").is_file()


def test_packages_are_those_that_this_one_announces(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(source: Bundle | Engine, name: str, **options: Any) -> list[str]:
        written = write_repository(source, tmp_path / name, TritonOptions("a", **options))
        lines = (tmp_path / name / "requirements.txt").read_text().splitlines()
        facts = json.loads((tmp_path / name / "speechquant.json").read_text())
        assert lines == facts["requirements"] == list(written.requirements)
        return lines

    assert of(tiny_bundle, "float") == ["numpy>=1.26,<2", "onnxruntime>=1.20"]
    quantized = replace(tiny_bundle, spec=replace(tiny_bundle.spec, precision="w8a8"))  # type: ignore[type-var]
    assert of(quantized, "w8a8")[2:] == ["onnx>=1.18", "onnx-ir>=0.1.12"]
    assert "openvino>=2025.0" in of(tiny_bundle, "openvino", provider="openvino")
    tensorrt = of(engine_of(tiny_bundle, tmp_path / "engine"), "tensorrt")
    assert tensorrt == ["numpy>=1.26,<2", "tensorrt==10.3.0", "pycuda>=2022.1"]
    ours = replace(
        MANIFEST,
        backend="onnxruntime",
        engine_file="engine.onnx",
        toolchain={"onnxruntime": "1.31.1"},
    )
    engine = engine_of(tiny_bundle, tmp_path / "ours", ours)
    assert of(engine, "onnxruntime")[1:] == ["onnxruntime>=1.31.1"]
    assert importlib.metadata.requires("speechquant")


def test_the_code_needs_numpy_alone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A model whose graph Triton runs is imported where nothing else is installed."""
    write_repository(tiny_bundle, tmp_path / "out", TritonOptions("asr", "onnxruntime"))
    version = tmp_path / "out" / "asr" / "1"
    missing = (
        "onnxruntime", "tokenizers", "soundfile", "soxr", "jiwer", "typer", "rich", "filelock",
        "whisper_normalizer", "onnx", "onnx_ir", "torch",
    )  # fmt: skip
    code = f"""
import sys
for name in {missing!r}: sys.modules[name] = None
sys.modules.pop("speechquant", None)
sys.path.insert(0, {str(version)!r})
import model, speechquant
assert speechquant.__file__ == {str(version / "speechquant" / "__init__.py")!r}, speechquant.__file__
config = {{"parameters": {{"graph": {{"string_value": "asr-graph"}},
                           "graph_lengths_type": {{"string_value": "int64"}}}}}}
from pathlib import Path
from speechquant.engines.triton.python_model import recognizer_of
print(type(recognizer_of(Path({str(version / "model")!r}), config)).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("CtcRecognizer\n", "")


def test_the_text_format_quotes_what_it_must() -> None:
    text = text_of({"name": 'a "b"\n', "flag": True, "inner": {"rows": [1, 2]}, "none": []})
    assert text == 'name: "a \\"b\\"\\n"\nflag: true\ninner {\n  rows: 1\n  rows: 2\n}\n'
