"""The command transcribe: files and folders in, lines or JSON out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from speechquant.core.audio import Waveform, audio_files_in
from speechquant.core.errors import AudioError
from speechquant.core.files import is_folder
from speechquant.core.progress import OnStep, after
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.runners import AUTO
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.options import decoding_options
from speechquant.pipeline.console import print_json, progress

_FILES_AT_ONCE = 64
# An hour of samples is 230 MB, so many long files must not be read together.
_SECONDS_AT_ONCE = 3600.0


def transcribe(
    bundle: options.Runnable,
    audio: Annotated[
        list[Path], typer.Argument(help="Audio files, or folders of them.", readable=False)
    ],
    language: options.Language = None,
    task: options.Task = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Whisper: show when each segment is said.")
    ] = False,
    temperatures: options.Temperatures = None,
    provider: options.Provider = AUTO,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Write down what is said in audio files."""
    decoding = decoding_options(language, task, temperatures, timestamps=timestamps)
    files = _files_of(audio)
    failures: list[str] = []
    rows = []
    # Lines on a terminal show how far it is, and a bar would be drawn over them.
    shows_lines = not json and sys.stdout.isatty()
    bar = nullcontext(None) if shows_lines else progress("transcribing")
    opened = open_recognizer(bundle, provider=provider, threads=threads, decoding=decoding)
    with opened as recognizer, bar as on_step:
        for row in _rows(recognizer, files, failures, on_step):
            rows.append(row)
            if not json:
                _print_row(row, decoding)
    if json:
        facts = {"bundle": str(bundle), "provider": opened.provider}
        print_json({**facts, "clips": rows, "failures": failures})
    _raise_for(failures, len(files))


def _raise_for(failures: Sequence[str], files: int) -> None:
    if len(failures) == 1:
        raise AudioError(failures[0])
    if failures:
        for failure in failures:
            print(f"error: {failure}", file=sys.stderr)
        raise AudioError(f"{len(failures)} of {files} files could not be transcribed")


def _files_of(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = audio_files_in(path) if is_folder(path) else [path]
        if not found:
            raise AudioError(f"{path}: no audio file in this folder; wav, flac, ogg, mp3 are read")
        files += found
    return files


def _read(recognizer: Recognizer, file: Path, failures: list[str]) -> Waveform | None:
    # One bad file among a thousand must not cost the other transcripts.
    try:
        wave = recognizer.read(file)
    except AudioError as error:
        failures.append(str(error))
        return None
    return wave


def _groups(
    recognizer: Recognizer, files: list[Path], failures: list[str]
) -> Iterator[list[tuple[Path, Waveform]]]:
    """Yield the readable files with their samples, as many as are transcribed together."""
    most_samples = _SECONDS_AT_ONCE * recognizer.spec.sample_rate_hz
    group: list[tuple[Path, Waveform]] = []
    for file in files:
        wave = _read(recognizer, file, failures)
        if wave is None:
            continue
        group.append((file, wave))
        if len(group) == _FILES_AT_ONCE or sum(len(wave) for _, wave in group) >= most_samples:
            yield group
            group = []
    if group:
        yield group


def _rows(
    recognizer: Recognizer, files: list[Path], failures: list[str], on_step: OnStep | None
) -> Iterator[dict[str, Any]]:
    """Yield one row a readable file, as soon as its group is done."""
    heard = 0
    for clips in _groups(recognizer, files, failures):
        started = time.perf_counter()
        transcripts = recognizer.recognize(
            [wave for _, wave in clips], after(heard + len(failures), len(files), on_step)
        )
        heard += len(clips)
        compute_seconds = time.perf_counter() - started
        audio_seconds = sum(len(wave) for _, wave in clips) / recognizer.spec.sample_rate_hz
        for (file, wave), transcript in zip(clips, transcripts, strict=True):
            seconds = len(wave) / recognizer.spec.sample_rate_hz
            yield {
                "path": str(file),
                "text": transcript.text,
                "seconds": seconds,
                # Clips run in batches, so a clip's own time is its share of its group's.
                "compute_seconds": compute_seconds * seconds / audio_seconds,
                "words": [asdict(word) for word in transcript.words],
                "segments": [asdict(segment) for segment in transcript.segments],
                "language": transcript.language,
            }


def _print_row(row: dict[str, Any], decoding: DecodingOptions) -> None:
    text = " ".join(row["text"].splitlines())  # a line a file, whatever a model writes
    print(f"{row['path']}\t{text}", flush=True)
    if decoding.timestamps:
        for segment in row["segments"]:
            print(f"  {segment['start']:8.2f} to {segment['end']:8.2f} s  {segment['text']}")
