"""The commands by name: a module each, which holds its options, its run and what it shows."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from speechquant.pipeline.console import show_logs

COMMANDS = {
    "export": "Turn a Hugging Face checkpoint into an ONNX bundle, checked against torch.",
    "transcribe": "Transcribe audio files.",
    "serve": "Serve models over HTTP with OpenAI's transcription API.",
    "evaluate": "Count the errors of a bundle on a data set with texts.",
    "inspect": "Show what a bundle, an engine or a scale table holds and what it was made from.",
    "outliers": "Show which modules of a float bundle have outlying activations.",
    "calibrate": "Make a scale table from a bundle and audio.",
    "quantize": "Make a W8A8 bundle (or another width) from a float one. "
    "A run that was killed continues.",
    "build": "Build an engine from a W8A8 or float bundle, and show what precision it runs in.",
    "convert": "Write a bundle in the layout of another program.",
    "triton": "Write a model repository for NVIDIA's Triton.",
    "bench": "Measure latency, WER, size and memory, and write a report; or compare two reports.",
    "demo": "Take zoo:hubert from checkpoint to W8A8, engines and a report.",
    "zoo": "The small trained models and the corpus.",
}


def command_named(name: str) -> Any:
    """Import a command: the function, or the `typer.Typer`, that bears its module's name."""
    command = getattr(import_module(f"{__name__}.{name}"), name)
    if isinstance(command, typer.Typer):
        return get_command(command)
    app = typer.Typer(add_completion=False)
    app.command(name)(command)
    return get_command(app)


class Commands(TyperGroup):
    """The commands as their names and lines, until one is called: its imports take a moment."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that was called, imported."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else command_named(name), rest


def _show_version(asked_for: bool) -> None:
    if asked_for:
        print(f"speechquant {version('speechquant')}")
        raise typer.Exit


def options_of_all(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show warnings and errors, not the steps.")
    ] = False,
) -> None:
    """Speech foundation models from a checkpoint to an INT8 engine that can be trusted."""
    show_logs(logging.WARNING if quiet else logging.INFO)


def run_app(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors of the commands pass through."""
    app = typer.Typer(
        name="speechquant",
        cls=Commands,
        no_args_is_help=True,
        epilog="Add --debug anywhere to see the traceback of an error.",
    )
    app.callback()(options_of_all)
    try:
        get_command(app).main(args=arguments, prog_name="speechquant")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0
