"""The command serve: bundles and engines over HTTP."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from speechquant.core.errors import MissingPackageError
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.runners import AUTO
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import print_json
from speechquant.serve.options import Batching, Limits, ServeOptions, read_token

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE_OR_ENGINE...",
            help="Folders that `export`, `quantize` or `build` wrote; clients name them by the "
            "folder's name.",
            readable=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8000,
    token: Annotated[
        Path | None,
        typer.Option(help="File with the token that clients must send.", readable=False),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Batches that run at once, each on a copy of its model.",
            rich_help_panel=options.LIMITS,
        ),
    ] = 1,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Most clips in a batch.", rich_help_panel=options.LIMITS)
    ] = 8,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            help="Longest time that a clip waits for others to join its batch, in ms.",
            rich_help_panel=options.LIMITS,
        ),
    ] = 20,
    max_megabytes: Annotated[
        float, typer.Option(help="Largest request, in MB.", rich_help_panel=options.LIMITS)
    ] = 100,
    max_seconds: Annotated[
        float, typer.Option(help="Longest audio, in seconds.", rich_help_panel=options.LIMITS)
    ] = 3600,
    max_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most requests at once, those that wait among them.",
            rich_help_panel=options.LIMITS,
        ),
    ] = 64,
    beam: options.Beam = 1,
    vad: options.Vad = False,
    provider: options.Provider = AUTO,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Serve models over HTTP with OpenAI's transcription API."""
    _refuse_without_packages()
    limits = Limits(
        megabytes=max_megabytes,
        audio_seconds=max_seconds,
        requests=max_requests,
        waiting_seconds=2 * max_seconds,
    )
    batching = Batching(max_batch, max_wait_ms, workers, threads)
    asked = ServeOptions(
        limits,
        batching,
        None if token is None else read_token(token),
        DecodingOptions(beams=beam, vad=vad),
    )
    from speechquant.serve.server import DrainingServer, Served, listening
    from speechquant.serve.server import serve as run

    opened = listening(host, port)
    if asked.token is None and host not in _LOOPBACK:
        line = f"warning: whoever reaches {host} may use this server; add --token FILE"
        print(line, file=sys.stderr)

    def announce(served: Served, _: DrainingServer) -> None:
        if json:
            print_json(asdict(served))
            sys.stdout.flush()
        names = ", ".join(served.models)
        print(f"serving {names} ({served.provider}) at {served.url}", file=sys.stderr, flush=True)

    run(models, provider, asked, opened, announce)


def _refuse_without_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"serve needs {error.name}: pip install 'speechquant[serve]'"
        ) from error
