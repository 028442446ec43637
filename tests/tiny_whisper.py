"""A Whisper checkpoint of a two-second chunk, small enough to export in seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechquant.core.bundles import Bundle, load_bundle, new_bundle

CHUNK_SECONDS = 2
POSITIONS = 50 * CHUNK_SECONDS
LANGUAGES = ("en", "de", "haw")
_LETTERS = "abcdefghijklmnopqrstuvwxyz' "
_TEXT_TOKENS = 300


def token_names() -> list[str]:
    """Return the tokens in the order of their numbers, as the published models have it."""
    from tokenizers.pre_tokenizers import ByteLevel

    text = sorted(ByteLevel.alphabet())
    text += [f"\u0120w{number}" for number in range(_TEXT_TOKENS - len(text))]
    special = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe"]
    special += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    special += [f"{step / 50:.2f}" for step in range(POSITIONS + 1)]
    return [*text, *(f"<|{name}|>" for name in special)]


def save_tiny_whisper(
    folder: Path, *, seed: int = 3, gates: str | None = None, **config: Any
) -> Path:
    """Write a checkpoint with seeded weights, every one of them away from its default."""
    import torch
    import transformers
    from transformers import WhisperConfig

    transformers.utils.logging.disable_progress_bar()
    tokens = token_names()
    end = tokens.index("<|endoftext|>")
    shape = {
        "vocab_size": len(tokens),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": POSITIONS,
        "max_target_positions": 24,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _new_whisper(WhisperConfig(**{**shape, **config}), gates).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        # As in trained models, timestamps seldom win where none are asked for.
        model.proj_out.weight.data[tokens.index("<|0.00|>") :] *= 0.3
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(
        feature_size=model.config.num_mel_bins, chunk_length=CHUNK_SECONDS
    ).save_pretrained(folder)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for number, token in enumerate(tokens) if number >= end
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens[:end])},
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    generation = {
        "decoder_start_token_id": end + 1,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": end,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": tokens.index(f"<|{code}|>") for code in LANGUAGES},
        "task_to_id": {task: tokens.index(f"<|{task}|>") for task in ("transcribe", "translate")},
        "no_timestamps_token_id": tokens.index("<|notimestamps|>"),
        "max_initial_timestamp_index": 20,
        "suppress_tokens": [5, 6, 7],
        "begin_suppress_tokens": [220, end],
        "max_length": 24,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _new_whisper(config: Any, gates: str | None) -> Any:
    from transformers import WhisperForConditionalGeneration

    if gates is None:
        return WhisperForConditionalGeneration(config)
    from speechquant.exporter.gate_kinds import GATES_KEY
    from speechquant.exporter.whisper_gates import GatedWhisperForConditionalGeneration

    setattr(config, GATES_KEY, gates)
    return GatedWhisperForConditionalGeneration(config)


def with_generation(bundle: Bundle, target: Path, **changed: Any) -> Bundle:
    """Write a bundle of the same graphs whose generation settings are `changed`."""
    spec = replace(bundle.spec, generation=replace(bundle.spec.generation, **changed))
    with new_bundle(target, spec, dict(bundle.made_from)) as folder:
        for name in bundle.files:
            shutil.copyfile(bundle.folder / name, folder / name)
    return load_bundle(target)


def small_teacher(width: int, positions: int) -> Any:
    """Return a Whisper with two blocks in its encoder and next to nothing as its decoder."""
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(
        WhisperConfig(
            d_model=width,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_layers=1,
            decoder_attention_heads=4,
            decoder_ffn_dim=8,
            vocab_size=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            max_source_positions=positions,
            max_target_positions=4,
        )
    )
