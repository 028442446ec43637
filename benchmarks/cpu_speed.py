"""Speed, size and memory on a CPU: `python -m speechquant.benchmarks.cpu_speed`.

A model of true size with random weights on seeded noise: float and W8A8 on ONNX Runtime's own
provider, as bundles and as engines, W8A8 in OpenVINO's plugin of ONNX Runtime and in the package
openvino, each with attention's own products in float and quantized, and the same float graph
quantized by NNCF for OpenVINO. Writes Markdown to
stdout. What needs the packages openvino and nncf is left out where they are not installed. The
peaks are read from /proc, so it runs on Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from speechquant.benchmarks.calibration_cost import (
    peak_gib,
    run_alone,
    write_noise,
)
from speechquant.benchmarks.float_tables import print_heading, print_row
from speechquant.benchmarks.machine import describe_machine
from speechquant.benchmarks.peer_graphs import make_nncf
from speechquant.benchmarks.workbench import Workbench
from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine
from speechquant.core.errors import EngineError, MissingPackageError
from speechquant.core.manifests import LabelledClip
from speechquant.engines import BuildOptions, Session, build_engine, open_session, quantize_bundle
from speechquant.engines.backends import ON_CPU, OPENVINO_PACKAGE, OPENVINO_PLUGIN
from speechquant.engines.onnxruntime_session import OnnxRuntimeSession, session_options
from speechquant.engines.openvino import openvino_settings
from speechquant.engines.openvino_session import OpenVinoSession
from speechquant.engines.recognizer import feeds_of
from speechquant.exporter import export
from speechquant.exporter.random_models import PREFIX

THREADS = 2
LENGTHS_SECONDS = (2, 10, 30)
REPEATS = 7
CALIBRATION_CLIPS, CALIBRATION_SECONDS = 4, 5.0
MEMORY_SECONDS, MEMORY_LIMIT_GIB = 30, 16

_NS_PER_MS = 1e6
# The threads of the one that ran before spin on for a moment, in case there is more to do.
_SETTLING_SECONDS = 0.2
Feeds = Mapping[str, Any]
(
    FLOAT,
    FLOAT_ENGINE,
    W8A8_PLAIN,
    W8A8_CPU,
    ATTENTION_CPU,
    W8A8_PLUGIN,
    ATTENTION_PLUGIN,
    W8A8_DIRECT,
    ATTENTION_DIRECT,
    NNCF,
) = NAMES = (
    "float, ONNX Runtime",
    "float, engine of ONNX Runtime",
    "W8A8, its Q/DQ graph in ONNX Runtime",
    "W8A8, ONNX Runtime",
    "W8A8 and attention, ONNX Runtime",
    "W8A8, OpenVINO's plugin",
    "W8A8 and attention, OpenVINO's plugin",
    "W8A8, its graph in OpenVINO itself",
    "W8A8 and attention, its graph in OpenVINO itself",
    "NNCF + OpenVINO",
)


@dataclass(frozen=True)
class Paths:
    """The model in its forms; `attention` is quantized with attention's own products.

    `nncf` is None where its packages are missing.
    """

    bundle: Bundle
    quantized: Bundle
    attention: Bundle
    float_engine: Engine
    nncf: Path | None


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each run: by the clock, and of the processor over all threads."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    @property
    def median(self) -> float:
        """The clock's."""
        return statistics.median(self.wall)


def noise_feeds(bundle: Bundle, seconds: float) -> Feeds:
    """Return a clip of white noise as the graph takes it."""
    samples = int(seconds * bundle.spec.sample_rate_hz)
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    return feeds_of(bundle.spec, [wave])


def make_paths(model: str, folder: Path) -> Paths:
    """Export and quantize `model` in every way there is a package for."""
    bundle = export(model, folder / "float")
    clips = write_noise(folder, CALIBRATION_CLIPS, CALIBRATION_SECONDS)
    quantized, attention = (
        quantize_bundle(bundle, folder / name, bench.table("max", 8))
        for name, bench in (
            ("w8a8", Workbench(bundle, clips, clips, folder / "work")),
            ("attention", Workbench(bundle, clips, clips, folder / "work", attention=True)),
        )
    )
    float_engine = build_engine(bundle, folder / "float-engine", BuildOptions("onnxruntime"))
    has_nncf = find_spec("openvino") is not None and find_spec("nncf") is not None
    nncf = _quantized_by_nncf(bundle, clips, folder / "nncf.xml") if has_nncf else None
    return Paths(bundle, quantized, attention, float_engine, nncf)


def _quantized_by_nncf(bundle: Bundle, clips: Sequence[LabelledClip], path: Path) -> Path:
    with redirect_stdout(sys.stderr):  # it prints what it does; stdout is for the tables
        make_nncf(bundle, clips, path)
    return path


def open_candidates(paths: Paths, stack: ExitStack, only: str | None = None) -> dict[str, Session]:
    """Return each form that this machine can run as a session, `only` one where it is named."""
    openers: dict[str, Callable[[], Session]] = {
        FLOAT: partial(ON_CPU.open, paths.bundle, THREADS, None),
        FLOAT_ENGINE: partial(open_session, paths.float_engine, threads=THREADS),
        W8A8_PLAIN: partial(_left_as_it_is, paths.quantized),
        W8A8_CPU: partial(ON_CPU.open, paths.quantized, THREADS, None),
        ATTENTION_CPU: partial(ON_CPU.open, paths.attention, THREADS, None),
        W8A8_PLUGIN: partial(OPENVINO_PLUGIN.open, paths.quantized, THREADS, None),
        ATTENTION_PLUGIN: partial(OPENVINO_PLUGIN.open, paths.attention, THREADS, None),
        W8A8_DIRECT: partial(OPENVINO_PACKAGE.open, paths.quantized, THREADS, None),
        ATTENTION_DIRECT: partial(OPENVINO_PACKAGE.open, paths.attention, THREADS, None),
    }
    if paths.nncf is not None:
        settings = openvino_settings(paths.quantized)
        openers[NNCF] = partial(OpenVinoSession, paths.nncf, settings, THREADS)
    sessions: dict[str, Session] = {}
    for name, open_it in openers.items():
        if only in (None, name):
            # `print_missing` tells why there is no OpenVINO.
            with suppress(MissingPackageError, EngineError):
                sessions[name] = stack.enter_context(open_it())
    return sessions


def _left_as_it_is(quantized: Bundle) -> Session:
    return OnnxRuntimeSession(quantized.model_path, session_options(THREADS))


def time_runs(sessions: Mapping[str, Session], feeds: Feeds) -> dict[str, Timing]:
    """Return the times of each candidate; in each of the repeats all run in turn."""
    for session in sessions.values():
        session.run(feeds)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for _ in range(REPEATS):
        for name, session in sessions.items():
            time.sleep(_SETTLING_SECONDS)
            wall, processor = time.perf_counter_ns(), time.process_time_ns()
            session.run(feeds)
            ended = time.process_time_ns(), time.perf_counter_ns()
            samples[name].append(
                ((ended[1] - wall) / _NS_PER_MS, (ended[0] - processor) / _NS_PER_MS)
            )
    return {name: Timing(*zip(*rows, strict=True)) for name, rows in samples.items()}


def print_speed(paths: Paths) -> None:
    """Print the times at each length."""
    print_heading(
        f"Speed: {THREADS} threads, {REPEATS} interleaved runs",
        "clip",
        "what",
        "median",
        "least to most",
        "processor time",
        "float / this",
        "NNCF / this",
        "the same in processor time",
    )
    with ExitStack() as stack:
        sessions = open_candidates(paths, stack)
        for seconds in LENGTHS_SECONDS:
            timings = time_runs(sessions, noise_feeds(paths.bundle, seconds))
            for name, timing in timings.items():
                print_row(f"{seconds} s", name, *_cells(timing, timings))


def _cells(timing: Timing, timings: Mapping[str, Timing]) -> Iterable[str]:
    yield f"{timing.median:.0f} ms"
    yield f"{min(timing.wall):.0f} to {max(timing.wall):.0f} ms"
    processor = statistics.median(timing.processor)
    yield f"{processor:.0f} ms"
    for name in (FLOAT, NNCF):
        yield f"{timings[name].median / timing.median:.2f}" if name in timings else ""
    ratios = (
        f"{statistics.median(timings[name].processor) / processor:.2f}"
        for name in (FLOAT, NNCF)
        if name in timings
    )
    yield ", ".join(ratios)


def peak_of(paths: Paths, name: str) -> float | None:
    """Return the most memory of a process that opens one candidate and runs it, in GiB."""
    with ExitStack() as stack:
        sessions = open_candidates(paths, stack, only=name)
        for session in sessions.values():
            session.run(noise_feeds(paths.bundle, MEMORY_SECONDS))
        return peak_gib() if sessions else None


def print_memory(paths: Paths) -> None:
    """Print the peak of each candidate, measured in a process of its own."""
    title = f"Peak memory: opened, {MEMORY_SECONDS} s of audio, each in a process of its own"
    print_heading(title, "what", "peak")
    for name in NAMES:
        peak = run_alone(peak_of, paths, name, limit_gib=MEMORY_LIMIT_GIB)
        if peak is not None:
            print_row(name, f"{peak:.2f} GiB")


def print_sizes(paths: Paths) -> None:
    """Print the bytes of the bundles, all their files counted."""
    print_heading("Size", "bundle", "MB", "of float")
    for name, bundle in (("float", paths.bundle), ("W8A8", paths.quantized)):
        share = bundle.size_bytes / paths.bundle.size_bytes
        print_row(name, f"{bundle.size_bytes / 1e6:.1f}", f"{share:.3f}")


def print_types(paths: Paths) -> None:
    """Print in which type OpenVINO truly runs products, convolutions and attention."""
    print_heading("What OpenVINO runs in which type", "graph", "kernel", "nodes")
    for name in (W8A8_DIRECT, ATTENTION_DIRECT, NNCF):
        with ExitStack() as stack:
            for session in open_candidates(paths, stack, only=name).values():
                session.run(noise_feeds(paths.bundle, LENGTHS_SECONDS[0]))
                if isinstance(session, OpenVinoSession):
                    for kernel, nodes in sorted(_kernels_of(session).items()):
                        print_row(name, kernel, nodes)


def _kernels_of(session: OpenVinoSession) -> Counter[str]:
    kernels: Counter[str] = Counter()
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, kernel = (str(facts[key].astype(str)) for key in ("layerType", "primitiveType"))
        if "Convolution" in kind or "FullyConnected" in kind or kind in ("MatMul", "Subgraph"):
            kernels[f"{kind} {kernel}"] += 1
    return kernels


def print_missing(paths: Paths) -> None:
    """Say which rows this machine cannot fill, and why."""
    for name, backend in ((W8A8_PLUGIN, OPENVINO_PLUGIN), (W8A8_DIRECT, OPENVINO_PACKAGE)):
        try:
            with backend.open(paths.quantized, THREADS, None):
                pass
        except (MissingPackageError, EngineError) as error:
            sys.stdout.write(f"\n'{name}' has no rows, with or without attention:\n{error}.\n")
    if paths.nncf is None:
        sys.stdout.write(f"\n'{NNCF}' has no rows: pip install openvino nncf.\n")


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default=f"{PREFIX}hubert-base")
    model = parser.parse_args().model
    sys.stdout.write(f"# W8A8 on a CPU, measured\n\nOn {describe_machine()}.\n")
    sys.stdout.write(
        f"The model is `{model}`, the audio white noise. The load before the first run was\n"
        f"{os.getloadavg()[0]:.1f}. Processor time is that of all threads together; other jobs on\n"
        "the machine change it little.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = make_paths(model, Path(folder))
        print_missing(paths)
        print_speed(paths)
        print_sizes(paths)
        print_memory(paths)
        if find_spec("openvino") is not None:
            print_types(paths)


if __name__ == "__main__":
    main()
