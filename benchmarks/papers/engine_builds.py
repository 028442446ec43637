"""Engines built ahead of time, without a GPU.

`python -m speechquant.benchmarks.papers.engine_builds`. Time and size of TensorRT-RTX engines,
what their products run in for each GPU, and what float type fp16 changes. Writes
Markdown to stdout.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechquant.benchmarks.bench.machine import describe_machine, load_average
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.benchmarks.papers.narrow_rest import emulate_float16
from speechquant.calibrators.methods import MethodOptions, table_from_statistics
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.core.onnx_files import save_graph
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.ctc.recognizer import CtcRecognizer
from speechquant.engines.families import family_of
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.tensorrt.graph import tensorrt_graph
from speechquant.engines.tensorrt.layers import LAYERS_FILE, LayerReport, read_layers
from speechquant.engines.tensorrt.library import load_library
from speechquant.exporter.ctc import export
from speechquant.recipes.evaluate import Evaluation, evaluate
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

TRUE_SIZE = "random:hubert-base"
TARGET = "sm86"
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
REPEATS = 3
CALIBRATION_CLIPS = 20
TEST_CLIPS = 200
_BACKEND = "tensorrt-rtx"
_MEGABYTE = 1e6


@dataclass(frozen=True)
class BuiltEngine:
    """The seconds of each build, the bytes of the engine and its layers."""

    seconds: tuple[float, ...]
    size_bytes: int
    report: LayerReport


def quantized(bundle: Bundle, out: Path, clips: Sequence[LabelledClip]) -> Bundle:
    """Write the bundle with every activation's largest magnitude on `clips` as its range."""
    seen = ActivationStatistics(len(clips))
    with ProbeSession(bundle) as probe:
        for clip in clips:
            seen.add_utterance(probe.activations_of(clip))
    table = table_from_statistics(
        seen, bundle.spec.layers, bundle.model_sha256, MethodOptions("max")
    )
    return quantize_bundle(bundle, out, table)


def build(bundle: Bundle, out: Path, target: str, float_type: str, repeats: int) -> BuiltEngine:
    """Build one engine several times."""
    options = BuildOptions(_BACKEND, target, float_type=float_type)
    engines = [build_engine(bundle, out, options, force=True) for _ in range(repeats)]
    return BuiltEngine(
        tuple(engine.manifest.build_seconds for engine in engines),
        engines[-1].only_graph.engine_path.stat().st_size,
        read_layers(out / LAYERS_FILE),
    )


def shares(report: LayerReport) -> dict[str, str]:
    """Return, for each kind of product, its layers by what they run in."""
    kinds: dict[str, list[str]] = {}
    for row in report.counts():
        kinds.setdefault(row["what"], []).append(f"{row['layers']} {row['runs']}")
    return {what: "; ".join(parts) for what, parts in kinds.items()}


_KINDS = ("convolution with weights", "matmul with weights", "matmul of activations")


def print_builds(bundles: dict[str, tuple[Bundle, Bundle]], work: Path) -> None:
    """Print time and size of each model's engines."""
    print_heading(
        f"Engines for {TARGET}, median of {REPEATS} builds",
        *("model", "bundle", "float_type", "build", "engine", "float graph", *_KINDS),
    )
    for name, (floats, integers) in bundles.items():
        plain = floats.only_graph.model_path.stat().st_size / _MEGABYTE
        for what, bundle, float_type in (
            ("W8A8", integers, "fp16"), ("W8A8", integers, "fp32"), ("float", floats, "fp16"),
        ):  # fmt: skip
            built = build(bundle, work / "engine", TARGET, float_type, REPEATS)
            of_kind = shares(built.report)
            print_row(
                *(name, what, float_type, f"{statistics.median(built.seconds):.1f} s"),
                *(f"{built.size_bytes / _MEGABYTE:.1f} MB", f"{plain:.1f} MB"),
                *(of_kind.get(kind, "none") for kind in _KINDS),
            )


def print_targets(name: str, bundle: Bundle, work: Path) -> None:
    """Print what the products of a W8A8 model run in, GPU by GPU."""
    print_heading(f"{name}, W8A8, float type fp16, by target", "target", "engine", *_KINDS)
    for target in TARGETS:
        built = build(bundle, work / "engine", target, "fp16", repeats=1)
        of_kind = shares(built.report)
        size = f"{built.size_bytes / _MEGABYTE:.1f} MB"
        print_row(target, size, *(of_kind.get(kind, "none") for kind in _KINDS))


@contextmanager
def session_of(bundle: Bundle, float_type: str, work: Path) -> Iterator[OnnxRuntimeSession]:
    """Open the graph that TensorRT is given, with float16 rounded as float16 is."""
    (asked,) = family_of(bundle).graphs_to_build(bundle, BuildOptions(_BACKEND)).values()
    graph = tensorrt_graph(asked, float_type, strongly_typed=True)
    if float_type == "fp16":
        emulate_float16(graph.model)
    path = work / f"{float_type}.onnx"
    save_graph(graph.model, path)
    with OnnxRuntimeSession(path, session_options(None)) as session:
        yield session


def print_float_types(
    bundles: dict[str, Bundle], clips: Sequence[LabelledClip], work: Path
) -> None:
    """Print what float type fp16 changes."""
    print_heading(
        f"What float type fp16 changes, {len(clips)} clips of zoo:test",
        *(
            "model",
            "WER, float type fp32",
            "WER, float type fp16",
            "same label",
            "largest difference",
        ),
    )
    for name, bundle in bundles.items():
        spec = bundle.spec_as(CtcSpec)
        words: list[Evaluation] = []
        logits: list[list[np.ndarray]] = []
        for float_type in ("fp32", "fp16"):
            with session_of(bundle, float_type, work) as session:
                words.append(evaluate(CtcRecognizer(bundle, session), clips))
                waves = (read_clip(spec, clip.audio) for clip in clips)
                logits.append([session.run(feeds_of(spec, [w]))["logits"] for w in waves])
        wide, narrow = (np.concatenate([row[0] for row in rows]) for rows in logits)
        same = (wide.argmax(-1) == narrow.argmax(-1)).mean()
        rates = [f"{100 * result.words.rate:.2f} % ({result.words.errors})" for result in words]
        largest = f"{np.abs(wide - narrow).max():.2f} of {np.abs(wide).max():.1f}"
        print_row(name, *rates, f"{100 * same:.2f} %", largest)


def main() -> None:
    """Print every table."""
    sys.stdout.write(
        f"# Engines built without a GPU, measured\n\nOn {describe_machine()},\n"
        f"TensorRT-RTX {load_library(_BACKEND).version}. Scales: the largest magnitude on "
        f"{CALIBRATION_CLIPS} clips of zoo:dev.\nWhat runs in what is read from the list of layers "
        "in each engine's build log.\nThe load before the first build was "
        f"{load_average()}.\n"
    )
    dev = read_data_set(corpus_manifest("dev"), require_text=True)[:CALIBRATION_CLIPS]
    test = read_data_set(corpus_manifest("test"), require_text=True)[:TEST_CLIPS]
    sources = {f"zoo:{name}": str(TRAINED_MODELS / name) for name in CTC_MODELS}
    sources[TRUE_SIZE] = TRUE_SIZE
    with tempfile.TemporaryDirectory() as folder:
        work, bundles = Path(folder), {}
        for number, (name, source) in enumerate(sources.items()):
            floats = export(source, work / f"{number}-fp32")
            bundles[name] = floats, quantized(floats, work / f"{number}-w8a8", dev)
        print_builds(bundles, work)
        print_targets(TRUE_SIZE, bundles[TRUE_SIZE][1], work)
        print_float_types({name: pair[1] for name, pair in list(bundles.items())[:-1]}, test, work)
    sys.stdout.write(
        "\nThe last table runs the graph that TensorRT is given on ONNX Runtime, with each result\n"
        "of a node in fp16 rounded to fp16's 11 bits. A value that tips over a half in a\n"
        "quantizer moves a whole step, so single logits differ by more than the rounding.\n"
    )


if __name__ == "__main__":
    main()
