"""The engine of ONNX Runtime: a graph rewritten for the CPU, optimised once and stored."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from speechquant.core.errors import EngineError, OptionError, one_line
from speechquant.core.onnx_files import save_graph, save_graphs_together
from speechquant.engines.build_options import BuildOptions, Built, GraphToBuild
from speechquant.engines.onnxruntime.graph import cpu_model
from speechquant.engines.onnxruntime.session import configure_cpu, session_options

_TARGETS = (None, "cpu", "current")


def build_onnxruntime(graph: GraphToBuild, out: Path, options: BuildOptions) -> Built:
    """Write the engine of `graph` into the file `out`; raises OptionError, EngineError."""
    _refuse_other_backends_options(options)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        rewritten = Path(temporary) / "rewritten.onnx"
        save_graph(cpu_model(graph.source), rewritten)
        _store_optimised(rewritten, out)
    return Built(
        target="cpu",
        toolchain={"onnxruntime": version("onnxruntime")},
        float_type="fp32",
    )


def share_weights(graphs: Sequence[Path], data: Path) -> None:
    """Move the weights of engines that lie in one folder into one file, each of them once."""
    import onnx_ir as ir

    models = {path: ir.external_data.load_to_model(ir.load(path)) for path in graphs}
    for path in graphs:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    save_graphs_together(models, data)


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
    if options.float_type not in (None, "fp32"):
        raise OptionError(
            f"float type is {options.float_type!r}, and ONNX Runtime's CPU provider computes in "
            "fp32; leave it out"
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
            "session.optimized_model_external_initializers_file_name", f"{out.name}.data"
        )
    try:
        onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = one_line(error)
        raise EngineError(
            f"ONNX Runtime refuses the rewritten graph ({reason}); "
            "run the bundle itself, and please report this"
        ) from error
