"""The rows of the paper's Table 2, and sizes as the paper computes them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts
from speechquant.core.errors import OptionError

TEACHER, UNTRAINED, FINE_TUNED = 1, 2, 3
_BLOCKS = {("none", "all"): 4, ("apot", "all"): 8, ("apot", "top50"): 12, ("uniform", "all"): 16}
_MATCHINGS = {
    "none": "",
    "static": "+ static matching",
    "dynamic": "+ dynamic matching",
    "restrained": "+ restrained dynamic matching",
}
_FIRST_NAMES = {
    TEACHER: "Teacher",
    UNTRAINED: "Student without training",
    FINE_TUNED: "+ fine-tuning",
    4: "KD logits",
    8: "KDQ logits APoT, all layers",
    12: "KDQ logits APoT, top 50 %",
    16: "KDQ logits uniform",
}
LAST_ROW = 19
UNIFORM_ROWS = range(_BLOCKS["uniform", "all"], LAST_ROW + 1)
# What the paper concludes: the second row has fewer errors than the first.
ORDERINGS = (
    ("logits over fine-tuning", FINE_TUNED, 4),
    ("static matching over logits", 4, 5),
    ("restrained over static matching", 5, 7),
    ("restrained over dynamic matching", 6, 7),
    ("half of the layers over all, logits", 8, 12),
    ("half of the layers over all, restrained", 11, 15),
    ("uniform over APoT, logits", 8, 16),
    ("uniform over APoT, restrained", 11, 19),
)
_MIB = 2**20
_FLOAT_BYTES, _ROUNDED_BYTES = 2, 1
_MATRICES = 8  # Q, K, V and O of two attentions


def row_name(number: int) -> str:
    """Return what the paper calls a row."""
    if number in _FIRST_NAMES:
        return _FIRST_NAMES[number]
    return list(_MATCHINGS.values())[number % len(_MATCHINGS)]


def row_of(settings: Mapping[str, Any], source: Path) -> int:
    """Return the number of the row that a run trained; raises OptionError for none of them."""
    key = (settings.get("quantizer"), settings.get("layers"))
    matching = settings.get("matching")
    if key not in _BLOCKS or matching not in _MATCHINGS:
        raise OptionError(f"{source}: is no run of speechquant.students.kdq; give its folder")
    if key == ("none", "all") and settings.get("distillation_weight") == 0:
        return FINE_TUNED
    return _BLOCKS[key] + list(_MATCHINGS).index(matching)


def rounded_share(number: int, layers: int) -> float:
    """Return the share of a decoder's layers that a row has rounded: half of 3 are 2."""
    if number < _BLOCKS["apot", "all"]:
        return 0.0
    return math.ceil(layers / 2) / layers if 12 <= number < 16 else 1.0


@dataclass(frozen=True)
class Shape:
    """What the paper's Table 1 says of a model, and the numbers that its size follows from."""

    encoder_layers: int
    decoder_layers: int
    width: int
    heads: int
    parameters: int
    decoder_linear: int
    embedding: int

    def size_mib(self, share: float = 0.0) -> float:
        """Return the size as the paper has it: float16, and one byte for what is rounded.

        The paper counts the tied embedding with the decoder's matrices, and half of both where half
        of the layers are rounded.
        """
        rounded = share * (self.decoder_linear + self.embedding)
        saved = (_FLOAT_BYTES - _ROUNDED_BYTES) * rounded
        return (_FLOAT_BYTES * self.parameters - saved) / _MIB


def shape_of(folder: Path) -> Shape:
    """Return the shape of a Whisper checkpoint of one file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width, layers = config["d_model"], config["decoder_layers"]
    return Shape(
        encoder_layers=config["encoder_layers"],
        decoder_layers=layers,
        width=width,
        heads=config["decoder_attention_heads"],
        parameters=_parameters_in(folder / "model.safetensors"),
        decoder_linear=layers * width * (_MATRICES * width + 2 * config["decoder_ffn_dim"]),
        embedding=config["vocab_size"] * width,
    )


def _parameters_in(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(
        math.prod(row["shape"])
        for name, row in header.items()
        if name not in ("__metadata__", "proj_out.weight")  # which is the embedding
    )


@dataclass(frozen=True)
class Entry:
    """A row of one student size, the checkpoint that it is about, and the seed of its training."""

    number: int
    decoder_layers: int
    checkpoint: CheckpointFacts
    shape: Shape
    seed: int = 0
