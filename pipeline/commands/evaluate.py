"""The command evaluate: the errors of a bundle or an engine on a data set."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from speechquant.core.wer import ErrorRate, most_hidden, rate_interval
from speechquant.engines.families import open_recognizer
from speechquant.engines.session import load_source
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.options import decoding_options
from speechquant.pipeline.console import print_json, print_table, progress
from speechquant.pipeline.sources import NamedData
from speechquant.recipes.evaluate import ClipResult, Evaluation, Listening, evaluate_over
from speechquant.recipes.evaluate import evaluate as evaluate_clips
from speechquant.recipes.executors.options import PROCESSES, ExecutorOptions


def evaluate(
    bundle: options.Runnable,
    data: options.Data,
    normalizer: options.Normalizer = "basic",
    limit: options.FirstClips = None,
    skip_unreadable: options.SkipUnreadable = False,
    worst: Annotated[
        int,
        typer.Option(
            min=0, help="How many of the worst clips to show.", rich_help_panel=options.RESULT
        ),
    ] = 5,
    language: options.Language = None,
    task: options.Task = None,
    temperatures: options.Temperatures = None,
    beam: options.Beam = 1,
    initial_prompt: options.InitialPrompt = None,
    previous_text: options.PreviousText = False,
    vad: options.Vad = False,
    provider: options.ScoringProvider = None,
    executor: options.Executor = PROCESSES,
    workers: options.Workers = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Count the errors of a bundle on a data set with texts."""
    decoding = replace(
        decoding_options(language, task, temperatures),
        beams=beam,
        initial_prompt=initial_prompt,
        previous_text=previous_text,
        vad=vad,
    )
    spread = ExecutorOptions(executor, workers)
    source = load_source(bundle)
    if spread.is_this_process:
        opened = open_recognizer(source, provider=provider, threads=threads, decoding=decoding)
        with opened as recognizer:
            runs_on = recognizer.provider
            clips = NamedData(data, limit, skip_unreadable).clips(require_text=True)
            with progress("evaluating") as on_step:
                result = evaluate_clips(recognizer, clips, normalizer=normalizer, on_step=on_step)
    else:
        clips = NamedData(data, limit, skip_unreadable).clips(require_text=True)
        listening = Listening(source.folder, tuple(clips), provider, threads, decoding)
        with progress("evaluating") as on_step:
            result = evaluate_over(listening, spread, normalizer=normalizer, on_step=on_step)
        runs_on = result.provider or ""
    if json:
        facts = {"bundle": str(bundle), "data": data, "provider": runs_on}
        print_json({**facts, **evaluation_facts(result)})
        return
    _show(result, runs_on)
    for clip in result.worst(worst):
        print_clip(clip)


def _show(result: Evaluation, runs_on: str) -> None:
    print_table(
        _ERROR_HEADINGS,
        [_error_row("words", result.words), _error_row("characters", result.characters)],
    )
    factor = result.real_time_factor
    took = (
        f"{result.workers} workers"
        if factor is None
        else f"{result.compute_seconds:.1f} s: real-time factor {factor:.3f}"
    )
    print(
        f"{len(result.clips)} clips, {result.audio_seconds:.0f} s of audio in {took}; "
        f"normalizer {result.normalizer}; provider {runs_on}"
    )


_ERROR_HEADINGS = (
    "unit", "error rate", "95 % interval", "errors", "of", "substituted", "inserted", "deleted",
)  # fmt: skip


def _error_row(unit: str, rate: ErrorRate) -> list[str]:
    found = _interval_of(rate)
    counts = (
        rate.errors,
        rate.reference_length,
        rate.substitutions,
        rate.insertions,
        rate.deletions,
    )
    interval = f"{100 * found[0]:.2f} to {100 * found[1]:.2f}" if found else "unknown"
    return [unit, f"{100 * rate.rate:.2f} %", interval, *map(str, counts)]


def _interval_of(rate: ErrorRate) -> tuple[float, float] | None:
    """Return the interval that a rate lies in, None of one clip and of empty references."""
    if len(rate.clips) < 2 or not rate.reference_length:
        return None
    interval = rate_interval(rate)
    return interval.low, most_hidden(interval, rate)


def print_clip(clip: ClipResult) -> None:
    """Show what was said and what was heard."""
    print(f"\n{clip.name}: {clip.errors} of {clip.reference_words} words wrong")
    print(f"  said   {clip.reference}")
    print(f"  heard  {clip.hypothesis}")


def _rate_facts(rate: ErrorRate) -> dict[str, Any]:
    return {
        "rate": rate.rate if rate.reference_length else None,
        "interval": _interval_of(rate),
        "errors": rate.errors,
        "reference_length": rate.reference_length,
        "substitutions": rate.substitutions,
        "insertions": rate.insertions,
        "deletions": rate.deletions,
    }


def evaluation_facts(result: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values."""
    return {
        "wer": _rate_facts(result.words),
        "cer": _rate_facts(result.characters),
        "normalizer": result.normalizer,
        "audio_seconds": result.audio_seconds,
        "compute_seconds": result.compute_seconds,
        "real_time_factor": result.real_time_factor,
        "clips": [asdict(clip) for clip in result.clips],
    }
