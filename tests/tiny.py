"""Checkpoints of every supported architecture, small enough to export in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *"abcdefghijklmnopqrstuvwxyz"]

_SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_LAYER_NORM: dict[str, Any] = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
# name: (class prefix in transformers, what differs from the defaults)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-group": ("Wav2Vec2", {}),
    "wav2vec2-layer": ("Wav2Vec2", _LAYER_NORM),
    "hubert-group": ("Hubert", {}),
    "hubert-layer": ("Hubert", _LAYER_NORM),
    "wavlm-group": ("WavLM", {}),
    "wavlm-layer": ("WavLM", _LAYER_NORM),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 9}),
}
PREPROCESSOR = {"do_normalize": True, "sampling_rate": 16_000, "feature_size": 1}


def tiny_model(variant: str) -> Any:
    """Return the model of a variant with seeded weights, every one of them away from its default."""
    import torch
    import transformers

    prefix, options = VARIANTS[variant]
    config = getattr(transformers, f"{prefix}Config")(**{**_SHAPE, **options})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, f"{prefix}ForCTC")(config).eval()
        for parameter in model.parameters():
            # Norms of one and biases of zero would hide a forgotten one.
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def save_tiny_checkpoint(variant: str, folder: Path) -> Path:
    """Write a variant as a Hugging Face checkpoint folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tiny_model(variant).save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": "|"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder
