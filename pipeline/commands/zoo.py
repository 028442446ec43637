"""The commands zoo list and zoo corpus."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from speechquant.core.errors import OptionError
from speechquant.core.files import new_folder, refuse_existing, refuse_unwritable
from speechquant.pipeline.commands import options
from speechquant.pipeline.console import megabytes, print_json, print_table, progress
from speechquant.pipeline.sources import ZOO_PREFIX, zoo_manifest
from speechquant.zoo.corpus import MANIFEST_NAME, SPLITS
from speechquant.zoo.models import MODEL_NAMES, TRAINED_MODELS

zoo = typer.Typer(
    help="The small trained models and the corpus.", no_args_is_help=True, add_completion=False
)
_MARK = f"*/{MANIFEST_NAME}"


def _model_facts(name: str) -> dict[str, Any]:
    folder = TRAINED_MODELS / name
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "name": f"{ZOO_PREFIX}{name}",
        "architecture": config["architectures"][0],
        "front_end": _front_end(config),
        **_blocks(config),
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def _front_end(config: Mapping[str, Any]) -> str:
    mel_bins = config.get("num_mel_bins")
    return f"{config['feat_extract_norm']} norm" if mel_bins is None else f"{mel_bins} mels"


def _blocks(config: Mapping[str, Any]) -> dict[str, int]:
    if "decoder_layers" not in config:
        return {"blocks": config["num_hidden_layers"]}
    return {"blocks": config["encoder_layers"], "decoder_blocks": config["decoder_layers"]}


@zoo.command("list")
def list_models(json: options.Json = False) -> None:
    """List the models that come with the package."""
    models = [_model_facts(name) for name in MODEL_NAMES]
    if json:
        print_json({"models": models})
        return
    rows = [
        [
            *(facts[key] for key in ("name", "architecture", "front_end")),
            " + ".join(str(facts[key]) for key in ("blocks", "decoder_blocks") if key in facts),
            megabytes(facts["size_bytes"]),
        ]
        for facts in models
    ]
    print_table(["name", "architecture", "front end", "blocks", "size"], rows)


@zoo.command("corpus")
def write_corpus(
    out: Annotated[
        Path, typer.Argument(help="Folder to write train, dev and test to.", readable=False)
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="Write only this part; repeat it for more parts.")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write the synthetic corpus as FLAC files with manifests."""
    chosen = split or list(SPLITS)
    for part in chosen:
        if part not in SPLITS:
            raise OptionError(f"--split {part}: no such part; choose {', '.join(SPLITS)}")
    refuse_existing(out, _MARK, force=force)
    refuse_unwritable(out)
    manifests = {}
    for part in chosen:
        with progress(f"rendering {part}") as on_step:
            manifests[part] = zoo_manifest(part, on_step)
    with new_folder(out, _MARK, force=force) as folder:
        for part, manifest in manifests.items():
            (folder / part).mkdir()
            for file in manifest.parent.iterdir():
                shutil.copyfile(file, folder / part / file.name)
    written = {part: str(out / part / "manifest.jsonl") for part in chosen}
    if json:
        print_json({"manifests": written})
        return
    for path in written.values():
        print(path)
