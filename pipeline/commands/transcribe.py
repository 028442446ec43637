"""The command transcribe: files and folders in, lines, JSON or subtitles out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from speechquant.core.audio import Waveform
from speechquant.core.errors import AudioError, MissingPackageError, OptionError
from speechquant.core.progress import OnStep, after
from speechquant.core.transcripts.formats import FORMATS, TIMED_FORMATS, Heard, document_of
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.runners import AUTO
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.options import decoding_options
from speechquant.pipeline.console import print_json, progress
from speechquant.pipeline.transcript_files import (
    AudioInput,
    OutputFolder,
    audio_inputs,
    formats_named,
)

_FILES_AT_ONCE = 64
# An hour of samples is 230 MB, so many long files must not be read together.
_SECONDS_AT_ONCE = 3600.0
_DEFAULT_FORMAT = "txt"


def transcribe(
    bundle: options.Runnable,
    audio: Annotated[
        list[Path],
        typer.Argument(help="Audio files, folders of them, or - for stdin.", readable=False),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}; separate several with commas. Without --output-dir the "
            "result of one file is printed.",
            show_default="a line a file",
            rich_help_panel=options.RESULT,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Write a file for each clip and format into this folder.",
            readable=False,
            rich_help_panel=options.RESULT,
        ),
    ] = None,
    language: options.Language = None,
    task: options.Task = None,
    timestamps: Annotated[
        bool,
        typer.Option(
            "--timestamps",
            help="Whisper: show when each segment is said.",
            rich_help_panel=options.WHISPER,
        ),
    ] = False,
    word_times: Annotated[
        bool,
        typer.Option(
            "--word-times",
            help="Whisper: give the time of each word, in json. The bundle must be exported with "
            "--word-times.",
            rich_help_panel=options.WHISPER,
        ),
    ] = False,
    temperatures: options.Temperatures = None,
    beam: options.Beam = 1,
    initial_prompt: options.InitialPrompt = None,
    previous_text: options.PreviousText = False,
    vad: options.Vad = False,
    provider: options.Provider = AUTO,
    threads: options.Threads = None,
    json: options.Json = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace files that are in --output-dir already.",
            rich_help_panel=options.RESULT,
        ),
    ] = False,
) -> None:
    """Transcribe audio files."""
    decoding = replace(
        decoding_options(language, task, temperatures, timestamps=timestamps),
        word_times=word_times,
        beams=beam,
        initial_prompt=initial_prompt,
        previous_text=previous_text,
        vad=vad,
    )
    formats = formats_named(format_)
    failures: list[str] = []
    with audio_inputs(audio, failures) as inputs:
        if formats and output_dir is None:
            _refuse_printing(formats, len(inputs), json)
        folder = output_dir and OutputFolder(output_dir, formats or (_DEFAULT_FORMAT,), force)
        targets = folder.targets_of(inputs) if folder else [[] for _ in inputs]
        timed = not TIMED_FORMATS.isdisjoint(formats)
        opened = open_recognizer(bundle, provider=provider, threads=threads, decoding=decoding)
        rows = []
        with opened as recognizer, progress("transcribing") as on_step:
            asked = replace(decoding, timestamps=timestamps or (timed and opened.takes_timestamps))
            for row in _rows(_Asked(recognizer, asked), inputs, failures, on_step):
                rows.append(row)
                if folder:
                    folder.write(targets[row.index], row.heard)
                elif formats:
                    sys.stdout.write(FORMATS[formats[0]](row.heard))
                if not json and (folder or not formats):
                    _print_row(row.heard, decoding)
    if json:
        facts = {"bundle": str(bundle), "provider": opened.provider}
        print_json({**facts, "clips": [row.document for row in rows], "failures": failures})
    _raise_for(failures, len(rows) + len(failures))


def _refuse_printing(formats: Sequence[str], files: int, json: bool) -> None:
    given = f"--format {','.join(formats)}"
    if json:
        raise OptionError(f"{given}: --json prints its own document; add --output-dir")
    if len(formats) > 1 or files > 1:
        raise OptionError(
            f"{given}: {files} files; only one of one format can be printed; add --output-dir"
        )


def _raise_for(failures: Sequence[str], files: int) -> None:
    if len(failures) == 1:
        raise AudioError(failures[0])
    if failures:
        for failure in failures:
            print(f"error: {failure}", file=sys.stderr)
        raise AudioError(f"{len(failures)} of {files} files could not be transcribed")


@dataclass(frozen=True)
class _Asked:
    """A recognizer and how it is asked."""

    recognizer: Recognizer
    decoding: DecodingOptions


@dataclass(frozen=True)
class _Row:
    """What was heard in the input of that `index`."""

    index: int
    heard: Heard
    compute_seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """What --json says of it."""
        return {**document_of(self.heard), "compute_seconds": self.compute_seconds}


def _read(recognizer: Recognizer, audio: AudioInput, failures: list[str]) -> Waveform | None:
    # One bad file among a thousand must not cost the other transcripts.
    try:
        wave = recognizer.read(audio.path)
    except (AudioError, MissingPackageError) as error:
        failures.append(str(error).replace(str(audio.path), audio.name))
        return None
    return wave


def _groups(
    recognizer: Recognizer, inputs: Sequence[AudioInput], failures: list[str]
) -> Iterator[list[tuple[int, Waveform]]]:
    """Yield the readable inputs with their samples, as many as are transcribed together."""
    most_samples = _SECONDS_AT_ONCE * recognizer.spec.sample_rate_hz
    group: list[tuple[int, Waveform]] = []
    for index, audio in enumerate(inputs):
        wave = _read(recognizer, audio, failures)
        if wave is None:
            continue
        group.append((index, wave))
        if len(group) == _FILES_AT_ONCE or sum(len(wave) for _, wave in group) >= most_samples:
            yield group
            group = []
    if group:
        yield group


def _rows(
    asked: _Asked, inputs: Sequence[AudioInput], failures: list[str], on_step: OnStep | None
) -> Iterator[_Row]:
    """Yield one row a readable input, as soon as its group is done."""
    recognizer, heard = asked.recognizer, 0
    rate_hz = recognizer.spec.sample_rate_hz
    for clips in _groups(recognizer, inputs, failures):
        started = time.perf_counter()
        transcripts = recognizer.recognize(
            [wave for _, wave in clips],
            after(heard + len(failures), len(inputs), on_step),
            decoding=asked.decoding,
        )
        heard += len(clips)
        compute_seconds = time.perf_counter() - started
        audio_seconds = sum(len(wave) for _, wave in clips) / rate_hz
        for (index, wave), transcript in zip(clips, transcripts, strict=True):
            seconds = len(wave) / rate_hz
            # Clips run in batches, so a clip's own time is its share of its group's.
            share = compute_seconds * seconds / audio_seconds
            yield _Row(index, Heard(inputs[index].name, seconds, transcript), share)


def _print_row(heard: Heard, decoding: DecodingOptions) -> None:
    text = " ".join(heard.transcript.text.splitlines())  # a line a file, whatever a model writes
    print(f"{heard.path}\t{text}", flush=True)
    if decoding.timestamps:
        for segment in heard.transcript.segments:
            print(f"  {segment.start:8.2f} to {segment.end:8.2f} s  {segment.text}")
