"""What collecting activation statistics costs.

`python -m speechquant.benchmarks.papers.calibration_cost`. Its time against float inference, its
peak memory, and ONNX Runtime's percentile calibrator beside it, all on seeded noise through a
hubert-base with random weights. Writes Markdown to stdout. The peaks are read from /proc, so it
runs on Linux.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile

from speechquant.benchmarks.bench.machine import describe_machine, load_average, peak_bytes
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.calibrators.collection import collect, one_by_one
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.manifests import LabelledClip
from speechquant.engines import open_session
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.exporter.ctc import export
from speechquant.exporter.random_models import PREFIX

MODEL = f"{PREFIX}hubert-base"
THREADS = 2
CLIP_SECONDS = 10.0
FEW_CLIPS, MANY_CLIPS = 20, 100
REPEATS = 3
TARGET_RATIO = 1.5
# A peer that keeps every activation of every clip must not take the machine down with it.
PEER_LIMIT_GIB = 10
PEER_CLIPS = (FEW_CLIPS, 5)

_SAMPLE_RATE_HZ = 16_000
_NS_PER_SECOND = 1e9
_BYTES_PER_GIB = 1 << 30

Result = TypeVar("Result")


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one pass over the clips.

    That is of plain inference, of inference that shows the activations, and of counting them.
    """

    plain: float
    showing: float
    counting: float

    @property
    def ratio(self) -> float:
        """How many times longer collecting takes than plain inference."""
        return (self.showing + self.counting) / self.plain


@dataclass(frozen=True)
class Cost:
    """Seconds over all clips, None where the memory allowed did not suffice, and the peak."""

    tensors: int
    seconds: float | None
    peak_gib: float


def write_noise(folder: Path, clips: int, seconds: float = CLIP_SECONDS) -> list[LabelledClip]:
    """Write `clips` files of white noise, each with its number as seed."""
    written = []
    for seed in range(clips):
        path = folder / f"{seed}.flac"
        wave = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * _SAMPLE_RATE_HZ))
        soundfile.write(path, wave, _SAMPLE_RATE_HZ)
        written.append(LabelledClip(path, None))
    return written


def feeds_of_clip(bundle: Bundle, clip: LabelledClip) -> dict[str, Any]:
    """Return what the graph takes for a clip alone."""
    return feeds_of(bundle.spec_as(CtcSpec), [read_audio(clip.audio, bundle.spec.sample_rate_hz)])


def time_passes(bundle: Bundle, clips: Sequence[LabelledClip], repeats: int) -> list[PassTimes]:
    """Return the times of `repeats` passes; within one, each clip is run both ways in turn."""
    with open_session(bundle, threads=THREADS) as plain, ProbeSession(bundle, THREADS) as probe:
        plain.run(feeds_of_clip(bundle, clips[0]))
        probe.activations_of(clips[0])
        passes = []
        for _ in range(repeats):
            collected, nanoseconds = ActivationStatistics(len(clips)), np.zeros(3, np.int64)
            for clip in clips:
                marks = [time.perf_counter_ns()]
                plain.run(feeds_of_clip(bundle, clip))
                marks.append(time.perf_counter_ns())
                activations = probe.activations_of(clip)
                marks.append(time.perf_counter_ns())
                collected.add_utterance(activations)
                del activations
                marks.append(time.perf_counter_ns())
                nanoseconds += np.diff(marks)
            passes.append(PassTimes(*(nanoseconds / _NS_PER_SECOND).tolist()))
    return passes


def peak_gib() -> float:
    """Return the most memory that this process has held; raises OSError where that is not told."""
    return peak_bytes() / _BYTES_PER_GIB


def cost_of_inference(bundle: Bundle, clips: Sequence[LabelledClip]) -> Cost:
    """Return what plain inference takes."""
    with open_session(bundle, threads=THREADS) as session:
        started = time.perf_counter()
        for clip in clips:
            session.run(feeds_of_clip(bundle, clip))
        return Cost(0, time.perf_counter() - started, peak_gib())


def cost_of_collecting(bundle: Bundle, clips: Sequence[LabelledClip]) -> Cost:
    """Return what this project's statistics take."""
    with ProbeSession(bundle, THREADS) as probe:
        started = time.perf_counter()
        collected = collect(one_by_one(probe.activations_of, clips), len(clips))
        return Cost(len(collected.tensors), time.perf_counter() - started, peak_gib())


class ClipReader:
    """Hands clips to ONNX Runtime's calibrators, which ask until they get None."""

    def __init__(self, bundle: Bundle, clips: Sequence[LabelledClip]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (feeds_of_clip(bundle, clip) for clip in clips)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next clip's feeds."""
        return next(self._feeds, None)


def cost_of_peer(bundle: Bundle, clips: Sequence[LabelledClip], clips_per_call: int) -> Cost:
    """Return what ONNX Runtime's percentile calibrator takes, given some clips at a time."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(sys.stderr),  # it prints what it does; stdout is for the tables
    ):
        calibrator = create_calibrator(
            bundle.only_graph.model_path,
            ["Conv", "MatMul", "Gemm"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
        )
        tensors = len(calibrator.tensors_to_calibrate)
        started = time.perf_counter()
        try:
            for first in range(0, len(clips), clips_per_call):
                calibrator.collect_data(ClipReader(bundle, clips[first : first + clips_per_call]))
        except Exception as error:  # ONNX Runtime's errors share no base class
            if not isinstance(error, MemoryError) and "allocat" not in str(error):
                raise
            return Cost(tensors, None, peak_gib())
        return Cost(tensors, time.perf_counter() - started, peak_gib())


def run_alone(task: Callable[..., Result], *arguments: object, limit_gib: int) -> Result:
    """Return what `task` returns in a process of its own that may hold `limit_gib` of data."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=_limit_data, initargs=(limit_gib,)
    ) as pool:
        return pool.submit(task, *arguments).result()


def _limit_data(gib: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (gib * _BYTES_PER_GIB,) * 2)


def print_times(bundle: Bundle, clips: Sequence[LabelledClip]) -> None:
    """Print the times of collecting against plain inference."""
    title = f"Time: {len(clips)} utterances of {CLIP_SECONDS:g} s, {THREADS} threads"
    print_heading(title, "pass", "float inference", "with activations", "counting them", "ratio")
    passes = time_passes(bundle, clips, REPEATS)
    for number, times in enumerate(passes, 1):
        seconds = [f"{part:.2f} s" for part in (times.plain, times.showing, times.counting)]
        print_row(number, *seconds, f"{times.ratio:.3f}")
    median = statistics.median(times.ratio for times in passes)
    sys.stdout.write(
        f"\nMedian ratio {median:.3f}; the target is at most {TARGET_RATIO:g}. In every pass each\n"
        "utterance is read and run without, then with collecting: both meet the same load.\n"
        "Counting runs on one core and inference on two, so other jobs flatter the ratio.\n"
    )


def print_cost(what: str, clips: int, cost: Cost) -> None:
    """Print a row of the table of costs."""
    failed = f"ran out of {PEER_LIMIT_GIB} GiB"
    seconds = failed if cost.seconds is None else f"{cost.seconds:.1f} s"
    print_row(what, cost.tensors, clips, seconds, f"{cost.peak_gib:.2f} GiB")


def print_memory(bundle: Bundle, clips: Sequence[LabelledClip]) -> None:
    """Print peak memory and time, each measured in a process of its own."""
    print_heading(
        "Peak memory, each in a process of its own", "what", "tensors", "utterances", "time", "peak"
    )

    def measure(what: str, task: Callable[..., Cost], count: int, *options: object) -> Cost:
        cost = run_alone(task, bundle, clips[:count], *options, limit_gib=PEER_LIMIT_GIB)
        print_cost(what, count, cost)
        return cost

    measure("float inference", cost_of_inference, FEW_CLIPS)
    for count in (FEW_CLIPS, MANY_CLIPS):
        measure("speechquant, collecting", cost_of_collecting, count)
    peer = "ONNX Runtime, CalibrationMethod.Percentile"
    for count in PEER_CLIPS:
        whole = measure(f"{peer}, one reader of all clips", cost_of_peer, count, count)
        if whole.seconds is not None:
            break
    measure(f"{peer}, collect_data for each clip", cost_of_peer, FEW_CLIPS, 1)


def main() -> None:
    """Print every table."""
    if sys.platform != "linux":
        raise SystemExit("calibration_cost: memory is measured on Linux alone; run it there")
    sys.stdout.write(f"# The cost of calibration, measured\n\nOn {describe_machine()}.\n")
    sys.stdout.write(
        f"The model is `{MODEL}`, the audio white noise. The load before the first run was\n"
        f"{load_average()}.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(MODEL, Path(folder) / "bundle")
        clips = write_noise(Path(folder), MANY_CLIPS)
        print_times(bundle, clips[:FEW_CLIPS])
        print_memory(bundle, clips)
    sys.stdout.write(
        "\nONNX Runtime's calibrator takes every input and output of a Conv, MatMul or Gemm, this\n"
        "project those that feed constant weights; it runs on all cores with graph optimisations\n"
        "off, as its create_calibrator sets it. The rows of this table were timed one after\n"
        f"another, and the data of each process was limited to {PEER_LIMIT_GIB} GiB.\n"
    )


if __name__ == "__main__":
    main()
