"""True configurations of known checkpoints with seeded random weights, for speed and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speechquant.core.errors import CheckpointError

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

# The 32 labels of the published English models.
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


def random_model(name: str) -> PreTrainedModel:
    """Return the model `name` of CONFIGURATIONS; raises CheckpointError for another name."""
    import torch
    import transformers

    if name not in CONFIGURATIONS:
        raise CheckpointError(
            f"{PREFIX}{name}: no such configuration; choose "
            f"{', '.join(PREFIX + known for known in CONFIGURATIONS)}"
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
