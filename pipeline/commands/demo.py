"""The command demo: the main job whole, on the smallest real model, from checkpoint to report."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from speechquant.benchmarks.report.record import REPORT_FILE
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.families import open_recognizer
from speechquant.exporter.ctc import export
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.bench import BenchOptions, measure
from speechquant.pipeline.commands.quantize import show_quantized
from speechquant.pipeline.console import progress
from speechquant.pipeline.sources import NamedData, checkpoint_of
from speechquant.recipes.calibrate import CalibrationRequest
from speechquant.recipes.executors.options import ExecutorOptions
from speechquant.recipes.quantize import QuantizeOptions, quantize

_MODEL = "zoo:hubert"
_DATA, _DEV = "zoo:test", "zoo:dev"
_TRANSCRIBED_CLIPS = 3
_SCORED_CLIPS = 200
_SEARCHED_CLIPS = 200
_LENGTHS, _BATCHES, _REPEATS = "1,2,5,10,20,30", "1,4", 7
_GPU = "rtx3090"
_CPU_ENGINE = "hubert-cpu-engine"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("demo-out"),
    json: options.Json = False,
) -> None:
    """Take zoo:hubert from checkpoint to W8A8, engines and a report."""
    # What the steps print on the way is no part of the one JSON document.
    with redirect_stdout(sys.stderr) if json else nullcontext():
        folders = _make(out)
        report = out / "report"
        measure(folders, _DATA, report, _bench_options(), as_json=False)
        print(f"try: speechquant transcribe {out / _CPU_ENGINE} YOUR.wav")
    if json:
        print((report / REPORT_FILE).read_text(encoding="utf-8"), end="")


def _make(out: Path) -> list[Path]:
    """Return the float bundle, the W8A8 bundle and the engines built from it."""
    bundle = export(checkpoint_of(_MODEL), out / "hubert-fp32", force=True, name=_MODEL)
    quantized = out / "hubert-w8a8"
    _quantize(bundle, quantized)
    folders = [bundle.folder, quantized, out / _CPU_ENGINE]
    build_engine(quantized, folders[-1], BuildOptions("onnxruntime"), force=True)
    _transcribe(folders[-1])
    if find_spec("tensorrt_rtx") is None:
        print("no engine for a GPU: pip install 'speechquant[tensorrt-rtx]'")
    else:
        folders.append(out / f"hubert-{_GPU}-engine")
        build_engine(quantized, folders[-1], BuildOptions("tensorrt-rtx", _GPU), force=True)
    return folders


def _quantize(bundle: Bundle, out: Path) -> None:
    every_core = ExecutorOptions(workers=os.cpu_count())
    request = CalibrationRequest(bundle, NamedData(_DEV, _SEARCHED_CLIPS), executor=every_core)
    asked_for = QuantizeOptions(out, force=True)
    show_quantized(quantize(request, asked_for, progress), asked_for)


def _transcribe(engine: Path) -> None:
    shown = NamedData(_DATA, _TRANSCRIBED_CLIPS).clips(require_text=True)
    with open_recognizer(engine) as recognizer:
        rate = recognizer.spec.sample_rate_hz
        heard = recognizer.transcribe([read_audio(clip.audio, rate) for clip in shown])
    for clip, text in zip(shown, heard, strict=True):
        print(f"\nsaid   {clip.text}\nheard  {text}")
    print()


def _bench_options() -> BenchOptions:
    return BenchOptions(_LENGTHS, _BATCHES, _REPEATS, limit=_SCORED_CLIPS, force=True)
