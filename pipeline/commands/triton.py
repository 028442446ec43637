"""The command triton: a bundle or an engine as a model repository of NVIDIA's Triton."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from speechquant.core.transcripts.languages import language_code
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.session import load_source
from speechquant.engines.triton.repository import (
    BACKENDS,
    PYTHON,
    REQUIREMENTS,
    TritonOptions,
    write_repository,
)
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import print_json


def triton(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE_OR_ENGINE",
            help="Folder that `export`, `quantize` or `build` wrote.",
            readable=False,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="Folder to write, for --model-repository.", readable=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="What clients call it.", show_default="the folder's name")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help=f"Triton's backend that runs the graph: {', '.join(BACKENDS)}. Features and text "
            f"are {PYTHON} in all; Whisper takes {PYTHON} alone."
        ),
    ] = PYTHON,
    max_batch: Annotated[int, typer.Option(min=1, help="Most clips in a batch.")] = 8,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long a clip waits for others to share its batch.")
    ] = 20,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the model.")] = 1,
    language: options.Language = None,
    task: options.Task = None,
    provider: options.ScoringProvider = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write a model repository for NVIDIA's Triton."""
    asked = TritonOptions(
        name=name or Path(os.path.abspath(model)).name,  # noqa: PTH100 - a link keeps its name
        backend=backend,
        most_clips=max_batch,
        most_wait_ms=max_wait_ms,
        instances=instances,
        provider=provider,
        threads=threads,
        decoding=DecodingOptions(
            language=None if language is None else language_code(language), task=task
        ),
    )
    written = write_repository(load_source(model), out, asked, force=force)
    if json:
        print_json(asdict(written) | {"folder": str(out)})
        return
    print(f"{out}: {', '.join(written.models)} for Triton")
    print(f"its Python needs {', '.join(written.requirements)} ({out / REQUIREMENTS})")
