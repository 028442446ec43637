"""The files of a checkpoint: a folder or a hub id, read without any pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.ctc import TEXT_FILES
from speechquant.core.errors import CheckpointError, one_line
from speechquant.core.files import is_file, is_folder, read_text
from speechquant.core.plain import parsed, value_of
from speechquant.core.weights import TRAINED_WEIGHTS_FILE
from speechquant.exporter.gate_kinds import GATED_WHISPER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SEQ2SEQ_FILES = ("generation_config.json", "tokenizer.json", "merges.txt")
# Not every safetensors file: multilingual checkpoints hold a thousand adapters beside the model.
_HUB_FILES = [
    "config.json", *TEXT_FILES, *_SEQ2SEQ_FILES, *_WEIGHT_FILES, "model-*.safetensors",
    TRAINED_WEIGHTS_FILE,
]  # fmt: skip


def folder_of(source: str) -> Path:
    """Return the folder of a checkpoint, fetched where it is a hub id; raises CheckpointError."""
    folder = Path(source)
    if is_file(folder):
        raise CheckpointError(f"{source}: is a file; give the folder that it lies in")
    return folder if is_folder(folder) else _download(source)


def architecture_in(folder: Path) -> str:
    """Return the architecture that a checkpoint's configuration names first."""
    path = folder / "config.json"
    names = setting(read_json(path), "architectures", tuple[str, ...], path)
    return names[0] if names else "none named"


def _download(hub_id: str) -> Path:
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{hub_id}: no such checkpoint folder, and not a hub id of the form OWNER/NAME; "
            "check the path"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    # The hub client raises its own errors, those of its HTTP library, and plain OSError.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{hub_id}: cannot be had from the hub ({reason}); "
            "check the name and the network, or give a local folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint; raises CheckpointError."""
    if not is_file(path):
        raise CheckpointError(
            f"{path.parent}: {path.name} is missing; copy it from where the checkpoint came from"
        )
    text = read_text(path, CheckpointError, "copy the file again")
    try:
        document = parsed(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: not a JSON object; copy the file again")
    return document


def setting(document: Mapping[str, Any], key: str, kind: Any, path: Path) -> Any:
    """Return what a checkpoint's file has under `key`, None for nothing; raises CheckpointError."""
    try:
        return None if document.get(key) is None else value_of(kind, document[key], key)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; copy the file again") from error


def require_safetensors(folder: Path, source: str) -> None:
    """Raise CheckpointError where the weights are not in safetensors files."""
    if any((folder / name).is_file() for name in _WEIGHT_FILES):
        return
    pickles = [name for name in _PICKLE_FILES if (folder / name).is_file()]
    if pickles:
        raise CheckpointError(
            f"{source}: {pickles[0]} is a pickle, which can run code when it is read; where you "
            "trust it, load it with transformers and save_pretrained() it to get model.safetensors"
        )
    raise CheckpointError(
        f"{source}: no model.safetensors in it; a checkpoint whose weights are a pickle must be "
        "saved again with save_pretrained()"
    )


def preprocessor_of(folder: Path) -> dict[str, Any]:
    """Return the settings of the checkpoint's feature extractor; raises CheckpointError."""
    # Newer processors are saved as one file that holds the feature extractor's settings.
    combined = folder / "processor_config.json"
    if not (folder / "preprocessor_config.json").is_file() and combined.is_file():
        nested = read_json(combined).get("feature_extractor")
        if isinstance(nested, dict):
            return nested
    return read_json(folder / "preprocessor_config.json")


def _class_of(architecture: str) -> Any:
    import transformers

    if architecture == GATED_WHISPER:
        from speechquant.exporter.whisper_gates import GatedWhisperForConditionalGeneration

        return GatedWhisperForConditionalGeneration
    return getattr(transformers, architecture)


def load_model(
    folder: Path, architecture: str, source: str, *, may_lack: str | None = None, mend: str
) -> PreTrainedModel:
    """Return the model in evaluation mode; raises CheckpointError.

    Weights with `may_lack` in their name are used in training alone; `mend` says what to give
    where others are missing.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # What it would report line by line is in the error below.
    transformers.utils.logging.set_verbosity_error()
    try:
        model, report = _class_of(architecture).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
        )
    # safetensors, json and the model classes each have their own way to refuse a damaged file.
    except Exception as error:
        reason = one_line(error)[:200]
        raise CheckpointError(
            f"{source}: cannot be loaded ({reason}); copy the checkpoint again"
        ) from error
    missing = [
        key for key in sorted(report["missing_keys"]) if may_lack is None or may_lack not in key
    ]
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} weights are missing, {missing[0]} first; {mend}"
        )
    loaded: PreTrainedModel = model
    loaded.eval()
    return loaded
