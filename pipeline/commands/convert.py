"""The command convert: a bundle in the layout of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechquant.core.bundles import load_bundle
from speechquant.engines.convert import WRITERS
from speechquant.engines.convert import convert as write_converted
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import print_json


def convert(
    bundle: Annotated[
        Path, typer.Argument(help="Folder that `export` or `quantize` wrote.", readable=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.", readable=False)],
    program: Annotated[
        str, typer.Option("--for", help=f"Program to convert for: {', '.join(WRITERS)}.")
    ],
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write a bundle in the layout of another program."""
    write_converted(load_bundle(bundle), out, program, force=force)
    if json:
        print_json({"out": str(out), "program": program})
    else:
        print(f"{out}: for {program}")
