"""The small Whisper of the zoo: its shape, its tokens, and how it is saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

WEIGHTS_FILE = "model.safetensors"
# The CTC head beside the decoder, for those who train a model further.
HEAD_FILE = "ctc-head.safetensors"
CHUNK_SECONDS = 8
POSITIONS_PER_SECOND = 50
_POSITIONS = CHUNK_SECONDS * POSITIONS_PER_SECOND
_MEL_BINS = 80
_MOST_TOKENS = 64
# The corpus has some eight hundred words; with these most of them are one token each.
_TEXT_TOKENS = 1_500
_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>")
# The encoder's blocks have the shape of zoo:hubert's, so that a training may begin with them.
_SHAPE: dict[str, Any] = {
    "d_model": 256,
    "encoder_layers": 4,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "num_mel_bins": _MEL_BINS,
    "max_source_positions": _POSITIONS,
    "max_target_positions": _MOST_TOKENS,
    # A run hears ten hours of clips, never twice the same: there is nothing to learn by heart.
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    # On a CPU the fused attention's backward pass is slower than that of its parts.
    "attn_implementation": "eager",
}


@dataclass(frozen=True)
class Tokens:
    """The numbers of the tokens that are no text, and what turns text into numbers."""

    tokenizer: Tokenizer

    def number(self, token: str) -> int:
        """Return the number of a special token."""
        found: int | None = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"{token}: no such token")
        return found

    @property
    def end(self) -> int:
        """The first token that is no text."""
        return self.number(_SPECIAL[0])

    @property
    def start(self) -> int:
        """What every prompt begins with."""
        return self.number(_SPECIAL[1])

    @property
    def no_speech(self) -> int:
        """What follows the start where nobody speaks."""
        return self.number(_SPECIAL[2])

    @property
    def no_timestamps(self) -> int:
        """What follows the start where no timestamps are wanted."""
        return self.number(_SPECIAL[3])

    def timestamp(self, seconds: float) -> int:
        """Return the token of a time in the chunk."""
        return self.no_timestamps + 1 + round(seconds * POSITIONS_PER_SECOND)

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text, which begins with a space as any later one does."""
        numbers: list[int] = self.tokenizer.encode(f" {text}").ids
        return numbers


def new_tokens(texts: Iterable[str]) -> Tokens:
    """Return byte pairs trained on `texts`, the special tokens and the timestamps behind them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TEXT_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    times = [f"<|{step / POSITIONS_PER_SECOND:.2f}|>" for step in range(_POSITIONS + 1)]
    special = [AddedToken(token, special=True) for token in (*_SPECIAL, *times)]
    tokenizer.add_special_tokens(special)
    return Tokens(tokenizer)


def read_tokens(folder: Path) -> Tokens:
    """Return the tokens of a saved model."""
    from tokenizers import Tokenizer

    return Tokens(Tokenizer.from_file(str(folder / "tokenizer.json")))


def new_whisper(tokens: Tokens, **shape: Any) -> PreTrainedModel:
    """Return the untrained model, in the zoo's shape but for what is given of it."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        **{**_SHAPE, **shape},
        vocab_size=tokens.tokenizer.get_vocab_size(),
        bos_token_id=tokens.end,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        decoder_start_token_id=tokens.start,
    )
    return WhisperForConditionalGeneration(config)


def save_whisper(model: PreTrainedModel, tokens: Tokens, folder: Path) -> None:
    """Write a Hugging Face checkpoint, its weights as float16: half the size."""
    import copy

    from transformers import WhisperFeatureExtractor

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    tokens.tokenizer.save(str(folder / "tokenizer.json"))
    WhisperFeatureExtractor(feature_size=_MEL_BINS, chunk_length=CHUNK_SECONDS).save_pretrained(
        folder
    )
    settings = {
        "decoder_start_token_id": tokens.start,
        "eos_token_id": tokens.end,
        "pad_token_id": tokens.end,
        "bos_token_id": tokens.end,
        "is_multilingual": False,
        "no_timestamps_token_id": tokens.no_timestamps,
        "max_length": _MOST_TOKENS,
    }
    text = json.dumps(settings, indent=1) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8")


def prompt_and_target(
    tokens: Tokens, pieces: Sequence[tuple[str, float, float | None]], *, timestamps: bool
) -> list[int]:
    """Return start, prompt, text and end of a chunk in which `pieces` are said.

    A piece is its text, its start and its end in seconds, None where the chunk ends before it does:
    then of the piece the start alone is told, or nothing where there are no timestamps.
    """
    if not pieces:
        return [tokens.start, tokens.no_speech, tokens.end]
    row = [tokens.start] if timestamps else [tokens.start, tokens.no_timestamps]
    for text, start, end in pieces:
        if timestamps:
            row.append(tokens.timestamp(start))
        if end is None:
            break
        row += tokens.text(text)
        if timestamps:
            row.append(tokens.timestamp(end))
    return [*row, tokens.end]
