"""The commands and their options; each one reads its input, calls a step, shows the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechquant.pipeline.console import show_logs

app = typer.Typer(
    name="speechquant",
    help="Speech foundation models from a checkpoint to an INT8 engine that can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Add --debug anywhere to see the traceback of an error.",
)
zoo_app = typer.Typer(help="The small trained models and the corpus.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Cores that one call may use; all by default.")
]
BundleFolder = Annotated[Path, typer.Argument(help="Folder that `export` wrote.", readable=False)]
Data = Annotated[
    str, typer.Option(help="JSONL manifest, LibriSpeech folder, or zoo:train, zoo:dev, zoo:test.")
]


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, hub id, zoo:NAME or random:NAME.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle to write.", readable=False)],
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a Hugging Face CTC checkpoint into an ONNX bundle, checked against torch."""
    from speechquant.pipeline.steps import run_export

    run_export(model, out, force=force, as_json=json)


@app.command()
def transcribe(
    bundle: BundleFolder,
    audio: Annotated[
        list[Path], typer.Argument(help="Audio files, or folders of them.", readable=False)
    ],
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write down what is said in audio files."""
    from speechquant.pipeline.transcription import run_transcribe

    run_transcribe(bundle, audio, threads=threads, as_json=json)


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: Data,
    normalizer: Annotated[
        str, typer.Option(help="How texts are made comparable: basic, whisper, none.")
    ] = "basic",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first clips.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst clips to show.")] = 5,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Count the errors of a bundle on a data set with texts."""
    from speechquant.pipeline.steps import run_evaluate

    run_evaluate(
        bundle, data, normalizer=normalizer, limit=limit, worst=worst, threads=threads, as_json=json
    )


@app.command()
def inspect(bundle: BundleFolder, json: Json = False) -> None:
    """Show what a bundle holds and what it was made from."""
    from speechquant.pipeline.steps import run_inspect

    run_inspect(bundle, as_json=json)


@zoo_app.command("list")
def zoo_list(json: Json = False) -> None:
    """List the models that come with the package."""
    from speechquant.pipeline.zoo import run_list

    run_list(as_json=json)


@zoo_app.command("corpus")
def zoo_corpus(
    out: Annotated[
        Path, typer.Argument(help="Folder to write train, dev and test to.", readable=False)
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="Only this part; may be given again.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the synthetic corpus as FLAC files with manifests."""
    from speechquant.pipeline.zoo import run_corpus

    run_corpus(out, split, force=force, as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("demo-out"),
    json: Json = False,
) -> None:
    """Export zoo:hubert, transcribe some clips and score it."""
    from speechquant.pipeline.demo import run_demo

    run_demo(out, as_json=json)


def run_app(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors of the commands pass through."""
    show_logs()
    try:
        app(args=arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0
