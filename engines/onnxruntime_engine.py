"""The engine of ONNX Runtime: a graph rewritten for the CPU, optimised once and stored."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError, OptionError
from speechquant.core.onnx_files import save_graph
from speechquant.engines.backends import configure_cpu
from speechquant.engines.build_options import BuildOptions, Built
from speechquant.engines.cpu_graph import cpu_model
from speechquant.engines.onnxruntime_session import session_options

ENGINE_FILE = "engine.onnx"
_WEIGHTS_FILE = "engine.onnx.data"
_TARGETS = (None, "cpu", "current")


def build_onnxruntime(bundle: Bundle, folder: Path, options: BuildOptions) -> Built:
    """Write the engine of `bundle` into `folder`; raises OptionError, EngineError."""
    _refuse_other_backends_options(options)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        rewritten = Path(temporary) / "rewritten.onnx"
        save_graph(cpu_model(bundle), rewritten)
        _store_optimised(rewritten, folder / ENGINE_FILE)
    return Built(
        engine_file=ENGINE_FILE,
        target="cpu",
        toolchain={"onnxruntime": version("onnxruntime")},
        rest="fp32",
    )


def _refuse_other_backends_options(options: BuildOptions) -> None:
    given = {
        "lengths": options.samples,
        "batch": options.batch,
        "timing cache": options.timing_cache,
        "version compatible": options.version_compatible,
        "hardware compatible": options.hardware_compatible,
    }
    for name, value in given.items():
        if value:
            raise OptionError(
                f"{name} is given, but an engine of onnxruntime takes any length and batch and "
                "keeps no measurements; leave it out"
            )
    if options.target not in _TARGETS:
        raise OptionError(
            f"target is {options.target!r}, but an engine of onnxruntime runs on any CPU; "
            "leave it out"
        )
    if options.rest not in (None, "fp32"):
        raise OptionError(
            f"rest is {options.rest!r}, and ONNX Runtime's CPU provider computes in fp32; "
            "leave it out"
        )


def _store_optimised(graph: Path, out: Path) -> None:
    import onnxruntime

    settings = session_options(threads=None)
    # One level short of all: the last one lays tensors out for the machine that optimises.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    configure_cpu(settings)
    settings.optimized_model_filepath = str(out)
    # Too large for one file before, too large after.
    if graph.with_name(f"{graph.name}.data").is_file():
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", _WEIGHTS_FILE
        )
    try:
        onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise EngineError(
            f"ONNX Runtime refuses the rewritten graph ({reason}); "
            "run the bundle itself, and please report this"
        ) from error
