"""Hugging Face CTC checkpoints: a folder, a hub id, or `random:NAME`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.ctc import TEXT_FILES, CtcDecoding
from speechquant.core.errors import CheckpointError
from speechquant.exporter.checkpoint_files import (
    architecture_in,
    folder_of,
    load_model,
    preprocessor_of,
    read_json,
    require_safetensors,
    setting,
)
from speechquant.exporter.random_models import PREFIX, VOCABULARY, random_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHISPER = "WhisperForConditionalGeneration"
ARCHITECTURES = ("Wav2Vec2ForCTC", "HubertForCTC", "WavLMForCTC", "Data2VecAudioForCTC")
_TOKENIZERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
_SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory and what is needed to feed it and to read its output."""

    source: str
    model: PreTrainedModel
    architecture: str
    text_files: Mapping[str, bytes]
    sample_rate_hz: int
    normalize_waveform: bool
    decoding: CtcDecoding


def load_checkpoint(source: str) -> Checkpoint:
    """Return the checkpoint at `source`; raises CheckpointError saying what is wrong with it."""
    if source.startswith(PREFIX):
        return _random_checkpoint(source)
    return _checkpoint_of_folder(folder_of(source), source)


def _random_checkpoint(source: str) -> Checkpoint:
    model = random_model(source.removeprefix(PREFIX))
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    preprocessor = {"do_normalize": True, "sampling_rate": _SAMPLE_RATE_HZ}
    return Checkpoint(
        source=source,
        model=model,
        architecture=type(model).__name__,
        text_files={
            "vocab.json": json.dumps(vocabulary, indent=1).encode(),
            "preprocessor_config.json": json.dumps(preprocessor, indent=1).encode(),
        },
        sample_rate_hz=_SAMPLE_RATE_HZ,
        normalize_waveform=True,
        decoding=_decoding(vocabulary, {}, blank=0),
    )


def _checkpoint_of_folder(folder: Path, source: str) -> Checkpoint:
    path = folder / "config.json"
    config = read_json(path)
    architecture = _supported_architecture(folder, config, source)
    require_safetensors(folder, source)
    preprocessor = preprocessor_of(folder)
    tokenizer = _tokenizer(folder)
    language = setting(tokenizer, "target_lang", str, folder / "tokenizer_config.json")
    size = setting(config, "vocab_size", int, path)
    vocabulary = _vocabulary(folder, size, language)
    text_files = {
        name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()
    }
    return Checkpoint(
        source=source,
        model=load_model(
            folder,
            architecture,
            source,
            may_lack="masked_spec_embed",
            mend="give a checkpoint that was fine-tuned for CTC",
        ),
        architecture=architecture,
        text_files={**text_files, "vocab.json": json.dumps(vocabulary, indent=1).encode()},
        sample_rate_hz=_sample_rate_hz(preprocessor, folder),
        normalize_waveform=bool(preprocessor.get("do_normalize", True)),
        decoding=_decoding(
            vocabulary, tokenizer, blank=setting(config, "pad_token_id", int, path) or 0
        ),
    )


def _tokenizer(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    tokenizer = read_json(path)
    kind = tokenizer.get("tokenizer_class")
    if kind is not None and kind not in _TOKENIZERS:
        raise CheckpointError(
            f"{path}: tokenizer {kind} does not spell words letter by letter; give a checkpoint "
            f"with a {_TOKENIZERS[0]}"
        )
    return tokenizer


def _sample_rate_hz(preprocessor: Mapping[str, Any], folder: Path) -> int:
    rate = preprocessor.get("sampling_rate", _SAMPLE_RATE_HZ)
    if type(rate) is not int or rate <= 0:
        raise CheckpointError(
            f"{folder}: its preprocessor's sampling_rate is {rate!r}; give a number of hertz"
        )
    return rate


def _supported_architecture(folder: Path, config: Mapping[str, Any], source: str) -> str:
    name = architecture_in(folder)
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: architecture {name}; {', '.join((*ARCHITECTURES, WHISPER))} can be exported"
        )
    if config.get("add_adapter"):
        raise CheckpointError(
            f"{source}: has a convolutional adapter after its encoder (add_adapter), which is not "
            "supported; give a checkpoint without one"
        )
    return name


def _vocabulary(folder: Path, size: int | None, language: str | None) -> dict[str, int]:
    vocabulary = read_json(folder / "vocab.json")
    # Multilingual checkpoints hold one vocabulary a language and say which one is loaded.
    if language is not None and isinstance(vocabulary.get(language), dict):
        vocabulary = vocabulary[language]
    if not all(type(index) is int for index in vocabulary.values()):
        raise CheckpointError(
            f"{folder / 'vocab.json'}: is no map from token to number; a multilingual one needs "
            "the target_lang of tokenizer_config.json"
        )
    if size is not None:
        # Some checkpoints list tokens that their head never got; those can never be heard.
        vocabulary = {token: index for token, index in vocabulary.items() if index < size}
    return vocabulary


def _decoding(
    vocabulary: Mapping[str, int], tokenizer: Mapping[str, Any], *, blank: int
) -> CtcDecoding:
    delimiter = _token(tokenizer.get("word_delimiter_token", "|"))
    special = {"<s>", "</s>", "<unk>", "<pad>"} | {
        token
        for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (token := _token(tokenizer.get(key))) is not None
    }
    return CtcDecoding(
        blank=blank,
        word_delimiter=delimiter if delimiter in vocabulary else None,
        skipped=tuple(sorted(special.intersection(vocabulary))),
        lower_case=bool(tokenizer.get("do_lower_case", False)),
    )


def _token(value: object) -> str | None:
    # A token is a string, or an object that holds it beside settings for writing it.
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
