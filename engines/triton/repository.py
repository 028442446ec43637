"""A model repository of Triton from a bundle or an engine."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from speechquant.core.bundles import DESCRIPTION, ENGINE_DESCRIPTION, Bundle
from speechquant.core.ctc import CTC, MODEL
from speechquant.core.engine_folders import Engine
from speechquant.core.errors import EngineError, OptionError, choice_among
from speechquant.core.files import new_folder
from speechquant.core.specs import TensorSpec
from speechquant.engines.ctc.recognizer import refuse_least_batch
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import family_of
from speechquant.engines.onnxruntime.backend import ONNXRUNTIME
from speechquant.engines.tensorrt.backend import TENSORRT, TENSORRT_RTX
from speechquant.engines.triton import python_model as served
from speechquant.engines.triton.config import (
    CPU,
    GPU,
    Message,
    instances,
    parameters,
    tensor,
    text_of,
)
from speechquant.engines.triton.requirements import packages_for, packages_for_graph_model

PYTHON = "python"
BACKENDS = (PYTHON, ONNXRUNTIME.name, TENSORRT.name)
DESCRIBED = "speechquant.json"
REQUIREMENTS = "requirements.txt"
_VERSION = "1"
_GRAPH_SUFFIX = "-graph"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KINDS = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}
# TensorRT made 32-bit numbers of an engine's 64-bit inputs before.
_FIRST_TENSORRT_WITH_INT64 = 10
# What is imported on top of NumPy: `open_recognizer` needs no other code of this package.
_CODE = ("core", "engines")
_MODEL_PY = f'''"""Written by `speechquant triton`; the code beside it is speechquant's own."""

import sys
from pathlib import Path

# Before a speechquant of another version that may be installed.
sys.path.insert(0, str(Path(__file__).parent))

from {served.__name__} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class TritonOptions:
    """How a model is served; `backend` is Triton's one that runs its graph.

    `provider` and `threads` are for backend python; `decoding` is how a Whisper model is asked.
    """

    name: str
    backend: str = PYTHON
    most_clips: int = 8
    most_wait_ms: float = 20.0
    instances: int = 1
    provider: str | None = None
    threads: int | None = None
    decoding: DecodingOptions = field(default_factory=DecodingOptions)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(
                f"{self.name!r}: no name for a model; give --name with letters, digits, . _ -"
            )
        if self.backend not in BACKENDS:
            raise OptionError(
                f"no backend {self.backend!r}; {choice_among(self.backend, BACKENDS)}"
            )
        if not (math.isfinite(self.most_wait_ms) and self.most_wait_ms >= 0):
            raise OptionError(
                f"--max-wait-ms is {self.most_wait_ms:g}; give a number of at least 0"
            )
        if self.backend != PYTHON and (self.provider or self.threads):
            raise OptionError(
                "--provider and --threads are for --backend python; leave them out, Triton's own "
                "backends read theirs in config.pbtxt"
            )


@dataclass(frozen=True)
class Repository:
    """What was written: the models, and the packages that Triton's Python must have."""

    folder: Path
    models: tuple[str, ...]
    requirements: tuple[str, ...]


def write_repository(
    source: Bundle | Engine, out: Path, options: TritonOptions, *, force: bool = False
) -> Repository:
    """Write a folder for `tritonserver --model-repository`.

    Raises OptionError, BundleError and EngineError where the model cannot be served so,
    OutputExistsError and StorageError; then nothing is left behind.
    """
    family_of(source).require_askable(source, options.decoding)
    if options.backend != PYTHON:
        _require_one_graph_for(options.backend, source)
    is_whole = options.backend == PYTHON
    packages = packages_for(source, options.provider) if is_whole else packages_for_graph_model()
    with new_folder(out, DESCRIBED, force=force) as folder:
        models = [options.name]
        _write_python_model(folder / options.name, source, options)
        if not is_whole:
            models.append(options.name + _GRAPH_SUFFIX)
            _write_graph_model(folder / models[-1], source, options)
        (folder / REQUIREMENTS).write_text("".join(f"{one}\n" for one in packages))
        facts = {"models": models, "backend": options.backend, "requirements": packages}
        (folder / DESCRIBED).write_text(json.dumps(facts, indent=1) + "\n")
    return Repository(out, tuple(models), tuple(packages))


def _require_one_graph_for(backend: str, source: Bundle | Engine) -> None:
    """Raise where Triton's `backend` cannot run the model."""
    instead = f"or leave --backend {backend} out: the Python backend runs it as well"
    if source.spec.task != CTC:
        raise OptionError(
            f"{source.folder}: the graphs of a Whisper model run in one process, for their caches; "
            f"leave --backend {backend} out"
        )
    made_for = source.manifest.backend if isinstance(source, Engine) else ONNXRUNTIME.name
    if made_for == TENSORRT_RTX.name:
        raise EngineError(
            f"{source.folder}: Triton has no backend for TensorRT-RTX; build it with "
            f"--backend {TENSORRT.name}, {instead}"
        )
    if made_for != backend:
        raise EngineError(
            f"{source.folder}: runs in {made_for}; give an engine that "
            f'"speechquant build --backend {backend}" made, {instead}'
        )
    if isinstance(source, Engine):
        refuse_least_batch(source)


# --- the models -----------------------------------------------------------------------------------


def _write_python_model(folder: Path, source: Bundle | Engine, options: TritonOptions) -> None:
    version = folder / _VERSION
    version.mkdir(parents=True)
    (version / "model.py").write_text(_MODEL_PY, encoding="utf-8")
    (folder / "config.pbtxt").write_text(text_of(_python_config(source, options)))
    _copy_code(version / "speechquant")
    description = ENGINE_DESCRIPTION if isinstance(source, Engine) else DESCRIPTION
    texts = [name for name in source.spec.text_files if name in source.files]
    names = source.files if options.backend == PYTHON else texts
    _copy_files(source.folder, version / served.FOLDER, [description, *names])


def _write_graph_model(folder: Path, source: Bundle | Engine, options: TritonOptions) -> None:
    if isinstance(source, Engine):
        file = source.only_graph.engine_path.name
    else:
        file = source.only_graph.model_path.name
    # Weights too large for one file lie beside it.
    names = [name for name in source.files if name in (file, f"{file}.data")]
    _copy_files(source.folder, folder / _VERSION, names)
    (folder / "config.pbtxt").write_text(text_of(_graph_config(folder.name, file, source, options)))


def _copy_files(source: Path, target: Path, names: Collection[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _copy_code(target: Path) -> None:
    """Copy what of this package a model runs."""
    root = Path(str(files("speechquant")))
    target.mkdir()
    shutil.copyfile(root / "__init__.py", target / "__init__.py")
    for name in _CODE:
        package = Path(str(files(f"speechquant.{name}")))
        shutil.copytree(package, target / name, ignore=shutil.ignore_patterns("__pycache__"))


# --- their configurations -------------------------------------------------------------------------


def _python_config(source: Bundle | Engine, options: TritonOptions) -> Message:
    audio = tensor(served.AUDIO, "FP32", [-1], allow_ragged_batch=True)
    lengths = tensor(served.LENGTHS, "INT32", [1], optional=True)
    told = {
        served.PROVIDER: options.provider,
        served.THREADS: None if options.threads is None else str(options.threads),
        served.LANGUAGE: options.decoding.language,
        served.TASK: options.decoding.task,
    }
    if options.backend != PYTHON:
        told[served.GRAPH] = options.name + _GRAPH_SUFFIX
        told[served.LENGTHS_TYPE] = _lengths_type(source)
    return {
        "name": options.name,
        "backend": PYTHON,
        "max_batch_size": options.most_clips,
        "input": [audio, lengths],
        "output": [tensor(served.TEXT, "STRING", [1])],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(1000 * options.most_wait_ms),
        },
        # The process opens its GPU itself, where it needs one.
        "instance_group": [instances(options.instances, CPU)],
        "parameters": parameters({key: value for key, value in told.items() if value is not None}),
    }


def _graph_config(name: str, file: str, source: Bundle | Engine, options: TritonOptions) -> Message:
    spec = source.spec.graphs[MODEL]
    lengths_type = _lengths_type(source)

    def described(one: TensorSpec) -> Message:
        dtype = lengths_type if one.dtype == "int64" else one.dtype
        dims = [size if isinstance(size, int) else -1 for size in one.dims]
        return tensor(one.name, _KINDS[dtype], dims)

    kind = GPU if options.backend == TENSORRT.name else CPU
    return {
        "name": name,
        "backend": options.backend,
        "default_model_filename": file,
        # Its first dimension is a batch, but who asks is the Python model, which makes the batches.
        "max_batch_size": 0,
        "input": [described(one) for one in spec.inputs],
        "output": [described(one) for one in spec.outputs],
        "instance_group": [instances(options.instances, kind)],
    }


def _lengths_type(source: Bundle | Engine) -> str:
    if isinstance(source, Engine) and source.manifest.backend == TENSORRT.name:
        version = source.manifest.toolchain.get(TENSORRT.name, "")
        if int(version.partition(".")[0] or 0) < _FIRST_TENSORRT_WITH_INT64:
            return "int32"
    return "int64"
