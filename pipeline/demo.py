"""The command demo: the main job whole, on the smallest real model, from checkpoint to report."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from speechquant.benchmarks.report.record import REPORT_FILE
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.exporter.ctc import export
from speechquant.pipeline.bench import BenchOptions, run_bench_command
from speechquant.pipeline.quantization import QuantizeOptions, new_request, run_quantize
from speechquant.pipeline.sources import checkpoint_of, data_set_of

_MODEL = "zoo:hubert"
_DATA, _DEV = "zoo:test", "zoo:dev"
_TRANSCRIBED_CLIPS = 3
_SCORED_CLIPS = 200
_SEARCHED_CLIPS = 200
_LENGTHS, _BATCHES, _REPEATS = "1,2,5,10,20,30", "1,4", 7
_GPU = "rtx3090"
_CPU_ENGINE = "hubert-cpu-engine"


def run_demo(out: Path, *, as_json: bool) -> None:
    """Export, quantize, build engines, transcribe, measure; print what came and where it lies."""
    # What the steps print on the way is no part of the one JSON document.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        folders = _make(out)
        report = out / "report"
        run_bench_command(folders, _DATA, report, _bench_options(), as_json=False)
        print(f"try: speechquant transcribe {out / _CPU_ENGINE} YOUR.wav")
    if as_json:
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
        options = BuildOptions("tensorrt-rtx", _GPU)
        build_engine(quantized, folders[-1], options, force=True)
    return folders


def _quantize(bundle: Bundle, out: Path) -> None:
    request = new_request(
        bundle.folder,
        _DEV,
        None,
        out,
        method="stablequant",
        bits=8,
        weight_bits=None,
        percentile=99.99,
        asymmetric=False,
        search="fast",
        gamma=0.25,
        keep_float=None,
        normalizer="basic",
        limit=_SEARCHED_CLIPS,
        workers=os.cpu_count() or 1,
        threads=None,
    )
    run_quantize(request, QuantizeOptions(out, force=True), as_json=False)


def _transcribe(engine: Path) -> None:
    shown = data_set_of(_DATA, require_text=True)[:_TRANSCRIBED_CLIPS]
    with open_recognizer(engine) as recognizer:
        rate = recognizer.spec.sample_rate_hz
        heard = recognizer.transcribe([read_audio(clip.path, rate) for clip in shown])
    for clip, text in zip(shown, heard, strict=True):
        print(f"\nsaid   {clip.text}\nheard  {text}")
    print()


def _bench_options() -> BenchOptions:
    return BenchOptions(
        lengths=_LENGTHS,
        batch=_BATCHES,
        providers=None,
        peers=False,
        only_peers=None,
        calibration=None,
        repeats=_REPEATS,
        decoding=DecodingOptions(),
        counts_errors=True,
        normalizer="basic",
        limit=_SCORED_CLIPS,
        threads=None,
        force=True,
    )
