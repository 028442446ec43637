"""The command demo: the main job on the smallest real model."""

from __future__ import annotations

from pathlib import Path

from speechquant.benchmarks.evaluation import evaluate
from speechquant.core.audio import read_audio
from speechquant.engines.recognizer import open_recognizer
from speechquant.exporter.ctc import export
from speechquant.pipeline.console import print_json, print_table, progress
from speechquant.pipeline.sources import checkpoint_of, data_set_of
from speechquant.pipeline.steps import ERROR_HEADINGS, error_row, evaluation_facts

_MODEL = "zoo:hubert"
_DATA = "zoo:test"
_TRANSCRIBED_CLIPS = 3
_SCORED_CLIPS = 200


def run_demo(out: Path, *, as_json: bool) -> None:
    """Export, transcribe, evaluate, and print a short table."""
    bundle = export(checkpoint_of(_MODEL), out / "hubert-fp32", force=True, name=_MODEL)
    with progress("rendering the corpus") as on_step:
        clips = data_set_of(_DATA, require_text=True, on_step=on_step)[:_SCORED_CLIPS]
    with open_recognizer(bundle) as recognizer:
        shown = clips[:_TRANSCRIBED_CLIPS]
        waves = [read_audio(clip.path, bundle.spec.sample_rate_hz) for clip in shown]
        heard = recognizer.transcribe(waves)
        with progress("evaluating") as on_step:
            result = evaluate(recognizer, clips, on_step=on_step)
    if as_json:
        print_json({"bundle": str(bundle.folder), "data": _DATA, **evaluation_facts(result)})
        return
    for clip, text in zip(shown, heard, strict=True):
        print(f"said   {clip.text}\nheard  {text}\n")
    print_table(ERROR_HEADINGS, [error_row("words", result.words)])
    print(
        f"{_MODEL} on the first {len(clips)} clips of {_DATA}, fp32, ONNX Runtime on the CPU: "
        f"real-time factor {result.real_time_factor:.3f}"
    )
    print(f"The bundle is {bundle.folder}; try: speechquant transcribe {bundle.folder} YOUR.wav")
