"""Building an engine with TensorRT, 8.5 to 11, or TensorRT-RTX."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechquant.core.engine_folders import Limits, file_of
from speechquant.core.errors import EngineError, OptionError, one_line
from speechquant.core.files import new_file
from speechquant.core.onnx_files import save_graph
from speechquant.core.progress import OnStep
from speechquant.engines.build_options import BuildOptions, Built, GraphToBuild
from speechquant.engines.tensorrt.graph import TensorRtGraph, tensorrt_graph
from speechquant.engines.tensorrt.layers import LAYERS_FILE, LayerReport, layers_from_log
from speechquant.engines.tensorrt.library import (
    RTX,
    BuildLog,
    Library,
    load_library,
    logger_of,
    monitor_of,
)
from speechquant.engines.tensorrt.targets import (
    CURRENT,
    capability_of,
    current_capability,
    name_of,
    target_of,
)

LOG_FILE = "build.log"
_AMPERE = (8, 0)
# How many of the library's own error lines one message repeats.
_SHOWN_ERRORS = 3


def build_tensorrt(
    graph: GraphToBuild, out: Path, options: BuildOptions, on_step: OnStep | None = None
) -> Built:
    """Write an engine of TensorRT or TensorRT-RTX to `out`, its build log and its layers beside it.

    Raises EngineError, with what the library said, where it refuses the graph or the target.
    """
    float_type = options.float_type or "fp16"
    library = load_library(options.backend)
    _refuse_options(library, options)
    target = _target(library, options.target)
    _refuse_type(float_type, target)
    typed = tensorrt_graph(graph, float_type, strongly_typed=library.is_strongly_typed)
    folder = out.parent
    log_file = folder / file_of(graph.name, LOG_FILE)
    with tempfile.TemporaryDirectory(prefix="graph-", dir=folder) as work:
        path = Path(work) / "model.onnx"
        save_graph(typed.model, path)
        request = _Request(library, options, graph, float_type, target)
        with log_file.open("w", encoding="utf-8") as file:
            plan = request.plan(path, typed, BuildLog(file), on_step)
    out.write_bytes(plan)
    with log_file.open(encoding="utf-8") as file:
        report = LayerReport(layers_from_log(file), typed.products)
    report.save(folder / file_of(graph.name, LAYERS_FILE))
    return Built(
        target=target,
        toolchain={library.backend: library.version},
        float_type=float_type,
        limits=graph.limits,
        float32_nodes=typed.float32_nodes,
        settings={
            "version_compatible": options.version_compatible,
            "hardware_compatible": options.hardware_compatible,
            "strongly_typed": library.is_strongly_typed,
        },
    )


def _refuse_options(library: Library, options: BuildOptions) -> None:
    asked = {
        "--version-compatible": (options.version_compatible, "VERSION_COMPATIBLE", "BuilderFlag"),
        "--hardware-compatible": (
            options.hardware_compatible,
            "AMPERE_PLUS",
            "HardwareCompatibilityLevel",
        ),
        "--timing-cache": (options.timing_cache is not None, "", ""),
    }
    for name, (is_asked, member, owner) in asked.items():
        if is_asked and library.backend == RTX:
            raise OptionError(
                f"{name}: TensorRT-RTX has no such thing, it chooses its kernels on the GPU that "
                "runs the engine; leave it out"
            )
        if is_asked and owner and not hasattr(getattr(library.module, owner, None), member):
            raise OptionError(
                f"{name}: TensorRT {library.version} has no such thing, 8.6 has; leave it out"
            )


def _target(library: Library, name: str | None) -> str:
    target = target_of(name or CURRENT)
    if library.backend == RTX:
        return _rtx_target(library, target)
    here = name_of(current_capability())
    if target not in (CURRENT, here):
        raise OptionError(
            f"target {target}: TensorRT measures its kernels on the GPU that it builds for, and "
            f"this one is {here}; build there, or with --backend tensorrt-rtx"
        )
    return here


def _rtx_target(library: Library, target: str) -> str:
    if target == CURRENT:
        target = name_of(current_capability())
    known = [name.lower() for name in dir(library.module.ComputeCapability) if name[:2] == "SM"]
    if target not in known:
        raise OptionError(
            f"target {target}: TensorRT-RTX {library.version} builds for {', '.join(known)}; "
            "use --backend tensorrt on that GPU"
        )
    return target


def _refuse_type(float_type: str, target: str) -> None:
    if float_type == "bf16" and capability_of(target) < _AMPERE:
        raise OptionError(f"target {target} has no bf16; use --float-type fp16")


@dataclass(frozen=True)
class _Request:
    """One engine to build."""

    library: Library
    options: BuildOptions
    graph: GraphToBuild
    float_type: str
    target: str

    def plan(
        self, path: Path, typed: TensorRtGraph, log: BuildLog, on_step: OnStep | None
    ) -> bytes:
        """Return the engine's bytes."""
        trt, logger = self.library.module, logger_of(self.library, log)
        with self._named("starts no builder", log):
            builder = trt.Builder(logger)
            network = builder.create_network(self._network_flags())
            parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            said = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise self._refused("cannot read the graph", said or log.errors)
        with self._named("takes no such settings", log):
            config = self._config(builder, network, typed, on_step)
        with self._named("built no engine", log):
            plan = builder.build_serialized_network(network, config)
        if log.disk_error is not None:
            raise log.disk_error
        if plan is None:
            raise self._refused("built no engine", log.errors)
        self._keep_timings(config)
        return bytes(plan)

    @contextmanager
    def _named(self, what: str, log: BuildLog) -> Iterator[None]:
        try:
            yield
        except (TypeError, RuntimeError) as error:  # its bindings raise no others
            raise self._refused(what, log.errors or [one_line(error)]) from error

    def _refused(self, what: str, said: Sequence[str]) -> EngineError:
        reasons = "; ".join(" ".join(line.split()) for line in said[:_SHOWN_ERRORS])
        return EngineError(
            f"{self.library.backend} {self.library.version} {what} for {self.target}: "
            f"{reasons or 'no reason given'}"
        )

    def _network_flags(self) -> int:
        names = ["EXPLICIT_BATCH"]  # what is left unsaid since 10
        if self.library.is_strongly_typed:
            names.append("STRONGLY_TYPED")  # what goes without saying since 11
        members = self.library.module.NetworkDefinitionCreationFlag
        return sum(1 << int(getattr(members, name)) for name in names if hasattr(members, name))

    def _config(
        self, builder: Any, network: Any, typed: TensorRtGraph, on_step: OnStep | None
    ) -> Any:
        config = builder.create_builder_config()
        config.profiling_verbosity = self.library.module.ProfilingVerbosity.DETAILED
        profile = builder.create_optimization_profile()
        for tensor in self.graph.inputs:
            profile.set_shape(tensor.name, *self._shapes(tensor.dims))
        config.add_optimization_profile(profile)
        if self.library.backend == RTX:
            config.num_compute_capabilities = 1
            capability = getattr(self.library.module.ComputeCapability, self.target.upper())
            config.set_compute_capability(capability, 0)
        if not self.library.is_strongly_typed:
            self._tell_types(config, network, typed)
        self._set_options(config)
        monitor = None if on_step is None else monitor_of(self.library, on_step)
        if monitor is not None:
            config.progress_monitor = monitor
        return config

    def _shapes(self, dims: tuple[int | str, ...]) -> list[tuple[int, ...]]:
        limits = [
            Limits(dim, dim, dim) if isinstance(dim, int) else self.graph.limits[dim]
            for dim in dims
        ]
        return [tuple(getattr(limit, end) for limit in limits) for end in ("least", "best", "most")]

    def _tell_types(self, config: Any, network: Any, typed: TensorRtGraph) -> None:
        """Let TensorRT before 10 use narrow types, and hold it to float32 where it must be."""
        if self.float_type == "bf16":
            raise OptionError(
                f"bf16: TensorRT {self.library.version} has none, 10 has; use --float-type fp16"
            )
        flags = self.library.module.BuilderFlag
        if any(product.quantized for product in typed.products):
            config.set_flag(flags.INT8)
        if self.float_type == "fp16":
            config.set_flag(flags.FP16)
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
            kept = frozenset(typed.float32_nodes)
            for index in range(network.num_layers):
                layer = network.get_layer(index)
                if layer.name in kept:
                    layer.precision = self.library.module.float32

    def _set_options(self, config: Any) -> None:
        options = self.options
        if options.version_compatible:
            config.set_flag(self.library.module.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = (
                self.library.module.HardwareCompatibilityLevel.AMPERE_PLUS
            )
        if options.timing_cache is not None:
            path = options.timing_cache
            known = path.read_bytes() if path.is_file() else b""
            cache = config.create_timing_cache(known)
            if cache is None or not config.set_timing_cache(cache, False):
                raise OptionError(
                    f"{path}: no timing cache of this GPU and TensorRT {self.library.version}; "
                    "give another file"
                )

    def _keep_timings(self, config: Any) -> None:
        if self.options.timing_cache is not None:
            with new_file(self.options.timing_cache, force=True) as path:
                path.write_bytes(bytes(config.get_timing_cache().serialize()))
