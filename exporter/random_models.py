"""True configurations of known checkpoints with seeded random weights, for speed and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speechquant.core.errors import CheckpointError, choice_among

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "random:"
_SEED = 0

_BASE: Mapping[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
# As in wav2vec2-large-960h-lv60-self and hubert-large-ls960-ft, the ones the paper quantizes.
_LARGE: Mapping[str, Any] = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# What the published configurations leave out equals the default of the library's class.
CONFIGURATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "wav2vec2-base": ("Wav2Vec2ForCTC", _BASE),
    "wav2vec2-large": ("Wav2Vec2ForCTC", _LARGE),
    "hubert-base": ("HubertForCTC", _BASE),
    "hubert-large": ("HubertForCTC", _LARGE),
}

# layers, width, heads, feed-forward width; as in openai/whisper-tiny to whisper-large-v2
WHISPER_SHAPES: Mapping[str, tuple[int, int, int, int]] = {
    "whisper-tiny": (4, 384, 6, 1536),
    "whisper-base": (6, 512, 8, 2048),
    "whisper-small": (12, 768, 12, 3072),
    "whisper-medium": (24, 1024, 16, 4096),
    "whisper-large-v2": (32, 1280, 20, 5120),
}

# The 32 labels of the published English models.
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


def random_model(name: str) -> PreTrainedModel:
    """Return the model `name` of CONFIGURATIONS; raises CheckpointError for another name."""
    import torch
    import transformers

    if name not in CONFIGURATIONS:
        raise CheckpointError(
            f"{PREFIX}{name}: no such configuration; "
            + choice_among(
                PREFIX + name, (PREFIX + known for known in (*CONFIGURATIONS, *WHISPER_SHAPES))
            )
        )
    architecture, options = CONFIGURATIONS[name]
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(
        vocab_size=len(VOCABULARY), attn_implementation="eager", **options
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model: PreTrainedModel = model_class(config)
    model.eval()
    return model


def random_whisper(name: str) -> tuple[PreTrainedModel, dict[str, Any], dict[str, Any]]:
    """Return the model `name` of WHISPER_SHAPES, a tokenizer.json and a generation_config.json.

    The tokens have the numbers of the published multilingual models; their texts are made up.
    """
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers, width, heads, inner = WHISPER_SHAPES[name]
    tokens = _whisper_tokens()
    numbers = {token: number for number, token in enumerate(tokens)}
    end = numbers["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(tokens),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=numbers["<|startoftranscript|>"],
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model: PreTrainedModel = WhisperForConditionalGeneration(config)
    model.eval()
    languages = _whisper_languages()
    generation = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": end,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": numbers[f"<|{code}|>"] for code in languages},
        "task_to_id": {task: numbers[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "no_timestamps_token_id": numbers["<|notimestamps|>"],
        "max_initial_timestamp_index": 50,
        "begin_suppress_tokens": [220, end],
    }
    return model, _whisper_tokenizer(tokens), generation


_TEXT_TOKENS = 50_257
_TIMESTAMPS = 1_501


def _whisper_languages() -> list[str]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return list(LANGUAGES)[:99]  # large-v3 added a hundredth


def _whisper_tokens() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [f"\u0120w{number}" for number in range(_TEXT_TOKENS - len(letters))]
    special = ["endoftext", "startoftranscript", *_whisper_languages(), "translate", "transcribe"]
    special += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    special += [f"{0.02 * step:.2f}" for step in range(_TIMESTAMPS)]
    return [*letters, *words, *(f"<|{name}|>" for name in special)]


def _whisper_tokenizer(tokens: Sequence[str]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(tokens)
            if number >= _TEXT_TOKENS
        ],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens[:_TEXT_TOKENS])},
            "merges": [],
        },
    }
