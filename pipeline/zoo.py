"""The commands zoo list and zoo corpus."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechquant.core.errors import OptionError
from speechquant.core.files import new_folder, refuse_existing, refuse_unwritable
from speechquant.pipeline.console import megabytes, print_json, print_table, progress
from speechquant.pipeline.sources import ZOO_PREFIX, zoo_manifest
from speechquant.zoo.corpus import MANIFEST_NAME, SPLITS
from speechquant.zoo.models import MODEL_NAMES, TRAINED_MODELS

_MARK = f"*/{MANIFEST_NAME}"


def _model_facts(name: str) -> dict[str, Any]:
    folder = TRAINED_MODELS / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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


def run_list(*, as_json: bool) -> None:
    """Show the models in the package."""
    models = [_model_facts(name) for name in MODEL_NAMES]
    if as_json:
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


def run_corpus(out: Path, splits: list[str] | None, *, force: bool, as_json: bool) -> None:
    """Copy the parts of the corpus to a folder, rendering them first where they are not cached."""
    chosen = splits or list(SPLITS)
    for split in chosen:
        if split not in SPLITS:
            raise OptionError(f"--split {split}: no such part; choose {', '.join(SPLITS)}")
    refuse_existing(out, _MARK, force=force)
    refuse_unwritable(out)
    manifests = {}
    for split in chosen:
        with progress(f"rendering {split}") as on_step:
            manifests[split] = zoo_manifest(split, on_step)
    with new_folder(out, _MARK, force=force) as folder:
        for split, manifest in manifests.items():
            (folder / split).mkdir()
            for file in manifest.parent.iterdir():
                shutil.copyfile(file, folder / split / file.name)
    written = {split: str(out / split / "manifest.jsonl") for split in chosen}
    if as_json:
        print_json({"manifests": written})
        return
    for path in written.values():
        print(path)
