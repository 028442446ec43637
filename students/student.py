"""A student made of some of its teacher's layers, and how it is saved."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.errors import OptionError
from speechquant.core.plain import parsed
from speechquant.exporter.gate_kinds import GATES, GATES_KEY
from speechquant.exporter.whisper_checkpoints import GENERATION_FILE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NO_GATES = "none"
GATE_CHOICES = (NO_GATES, *GATES)
# What a student reads and writes as its teacher does; the weights and the shape are its own.
_SHARED_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "normalizer.json",
    "added_tokens.json", "special_tokens_map.json", "preprocessor_config.json",
    "processor_config.json", GENERATION_FILE,
)  # fmt: skip
# Heads of the teacher's decoder that tell where a word is.
_OF_TEACHER_LAYERS = "alignment_heads"


@dataclass(frozen=True)
class Shape:
    """How many layers a student has, and the kind of its gates."""

    encoder_layers: int
    decoder_layers: int
    gates: str

    def refuse_for(self, teacher: PreTrainedModel) -> None:
        """Raise OptionError where no student of the teacher has this shape."""
        config = teacher.config
        for part in ("encoder", "decoder"):
            asked, known = getattr(self, f"{part}_layers"), getattr(config, f"{part}_layers")
            if not 1 <= asked <= known:
                raise OptionError(
                    f"--{part}-layers {asked}: the teacher's {part} has {known} layers; give 1 to "
                    f"{known}"
                )
        own = getattr(config, GATES_KEY, None)
        if own not in (None, self.gates):
            raise OptionError(f"--gates {self.gates}: the teacher has gates; give --gates {own}")


def evenly_from_the_first(known: int, wanted: int) -> list[int]:
    """Return which of the encoder's layers are copied: for a quarter, every fourth one."""
    return [index * known // wanted for index in range(wanted)]


def first_to_last(known: int, wanted: int) -> list[int]:
    """Return which of the decoder's layers are copied: of two, the first and the last."""
    if wanted == 1:
        return [0]
    return [round(index * (known - 1) / (wanted - 1)) for index in range(wanted)]


def student_of(teacher: PreTrainedModel, shape: Shape) -> Any:
    """Return a new model with copies of the teacher's weights; raises OptionError."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape.refuse_for(teacher)
    values = {
        **teacher.config.to_dict(),
        "encoder_layers": shape.encoder_layers,
        "decoder_layers": shape.decoder_layers,
        "num_hidden_layers": shape.encoder_layers,
    }
    if shape.gates == NO_GATES:
        model = WhisperForConditionalGeneration(WhisperConfig(**values))
    else:
        from speechquant.exporter.whisper_gates import GatedWhisperForConditionalGeneration

        config = WhisperConfig(**{**values, GATES_KEY: shape.gates})
        model = GatedWhisperForConditionalGeneration(config)
    model.config._attn_implementation = teacher.config._attn_implementation
    copied = {
        "encoder": evenly_from_the_first(teacher.config.encoder_layers, shape.encoder_layers),
        "decoder": first_to_last(teacher.config.decoder_layers, shape.decoder_layers),
    }
    own = model.state_dict()
    given = teacher.state_dict()
    taken = {key: given[old] for key in own if (old := _teacher_key(key, copied)) in given}
    left = [key for key in own if key not in taken and ".gate." not in key]
    if left:
        raise ValueError(f"{left[0]}: the teacher has no such weight")
    model.load_state_dict(taken, strict=False)
    return model.eval()


def _teacher_key(key: str, copied: Mapping[str, Sequence[int]]) -> str:
    """Return the name that a weight of the student has in the teacher."""
    for part, layers in copied.items():
        start = f"model.{part}.layers."
        if key.startswith(start):
            number, _, rest = key.removeprefix(start).partition(".")
            return f"{start}{layers[int(number)]}.{rest}"
    return key


def save_student(model: torch.nn.Module, teacher_folder: Path, folder: Path) -> None:
    """Write a Hugging Face checkpoint, its weights as float16, read and decoded as the teacher."""
    save_as_they_are(copy.deepcopy(model).half(), teacher_folder, folder)


def save_as_they_are(model: Any, teacher_folder: Path, folder: Path) -> None:
    """Write a Hugging Face checkpoint in the float type of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for name in _SHARED_FILES:
        if (teacher_folder / name).is_file():
            shutil.copyfile(teacher_folder / name, folder / name)
        else:
            # What transformers writes of its own are defaults, not this model's settings.
            (folder / name).unlink(missing_ok=True)
    path = folder / GENERATION_FILE
    if path.is_file():
        settings = parsed(path.read_text(encoding="utf-8"))
        settings.pop(_OF_TEACHER_LAYERS, None)
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
