"""The small models of the zoo: true front ends and block orders at a size that trains on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.errors import CheckpointError
from speechquant.core.files import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A wheel has their descriptions without their weights, which are most of its bytes.
# The hyphen keeps setuptools from taking the folders for packages.
TRAINED_MODELS = Path(__file__).parent / "trained-models"
CTC_MODELS = ("wav2vec2", "hubert")  # as new_model makes them
WAVLM = "wavlm"  # from a Whisper: train_wavlm_from_whisper.py
WHISPER = "whisper"  # in whisper_model.py
MODEL_NAMES = (*CTC_MODELS, WAVLM, WHISPER)
_WEIGHTS = "model.safetensors"


def trained_model(name: str) -> Path:
    """Return the checkpoint of a model of the zoo; raises CheckpointError where it is not here."""
    in_cache = cache_folder() / TRAINED_MODELS.name
    for folder in (TRAINED_MODELS / name, in_cache / name):
        if (folder / _WEIGHTS).is_file():
            return folder
    raise CheckpointError(
        f"zoo:{name}: its weights are in the repository, not in the wheel; copy "
        f"zoo/{TRAINED_MODELS.name}/{name} from there to {in_cache}"
    )


# Blank first, as CTC in Hugging Face has it; "|" stands for the space between words.
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", "'", *"abcdefghijklmnopqrstuvwxyz")
_WORD_DELIMITER = "|"

# The seven convolutions keep the kernels and strides of the originals. Their widths grow with
# depth, because the first ones see 3,200 frames a second and would take most of the time.
_SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": (32, 48, 64, 96, 128, 160, 192),
    "num_conv_pos_embeddings": 64,
    "num_conv_pos_embedding_groups": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.05,
    # Drawing these masks took a sixth of a training step on a CPU, for models that underfit.
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.04,
    "mask_time_length": 6,
    "ctc_zero_infinity": True,
    "ctc_loss_reduction": "mean",
    # On a CPU the fused attention's backward pass is slower than that of its parts.
    "attn_implementation": "eager",
}


def is_trained_with_mask(name: str) -> bool:
    """Return whether the model hides padding from itself; group-norm front ends cannot."""
    return name in ("hubert", WAVLM)


def new_model(name: str) -> PreTrainedModel:
    """Return the untrained model `name`, wav2vec2 or hubert."""
    from transformers import HubertConfig, HubertForCTC, Wav2Vec2Config, Wav2Vec2ForCTC

    if name == "wav2vec2":
        config = Wav2Vec2Config(
            **_SHAPE, feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False
        )
        return Wav2Vec2ForCTC(config)
    return HubertForCTC(
        HubertConfig(**_SHAPE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
    )


def token_ids(text: str) -> list[int]:
    """Return the labels of a transcript in small letters, spaces and apostrophes."""
    return [VOCABULARY.index(_WORD_DELIMITER if letter == " " else letter) for letter in text]


def save_model(name: str, model: PreTrainedModel, folder: Path, *, as_float16: bool = True) -> None:
    """Write a Hugging Face checkpoint, its weights as float16 by default: half the size."""
    import copy

    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    folder.mkdir(parents=True, exist_ok=True)
    (copy.deepcopy(model).half() if as_float16 else model).save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    text = json.dumps({token: i for i, token in enumerate(VOCABULARY)}, indent=1)
    vocabulary.write_text(text, encoding="utf-8")
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=is_trained_with_mask(name)
    ).save_pretrained(folder)
