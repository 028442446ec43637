"""A KDQ student on disk: float weights as they were rounded, and beside them their levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechquant.core.weights import (
    TRAINED_WEIGHTS_FILE,
    TrainedWeight,
    write_trained_weights,
)
from speechquant.students.kdq.layers import NAMES, is_rounded, layers_of
from speechquant.students.kdq.quantizers import RoundedWeight
from speechquant.students.student import save_as_they_are

# What parametrize makes of a weight's name, and the buffer beside it.
_LATENT, _SWITCH = ".parametrizations.weight.original", ".parametrizations.weight.0.is_on"


def trained_weights_of(student: Any) -> dict[str, TrainedWeight]:
    """Return the weights of the rounded layers by their names in a checkpoint."""
    found = {}
    for index, layer in enumerate(layers_of(student)):
        for name in NAMES if is_rounded(layer) else ():
            parametrized: Any = layer.get_submodule(name).parametrizations
            rounding: RoundedWeight = parametrized.weight[0]
            rounded = rounding.quantizer.rounded(parametrized.weight.original)
            found[f"model.decoder.layers.{index}.{name}.weight"] = TrainedWeight(
                rounded.codes.cpu().numpy(),
                rounded.levels.cpu().numpy().astype(np.int16),
                np.float32(rounded.scale.item()),
            )
    return found


def save_rounded_student(student: Any, teacher_folder: Path, folder: Path) -> None:
    """Write a checkpoint in float32, which holds levels times scales as they were trained."""
    trained = trained_weights_of(student)
    values = {
        key.replace(_LATENT, ".weight"): value
        for key, value in student.state_dict().items()
        if not key.endswith(_SWITCH)
    }
    rounded = {name: torch.from_numpy(weight.values) for name, weight in trained.items()}
    plain = type(student)(student.config)
    plain.load_state_dict({**values, **rounded})
    save_as_they_are(plain, teacher_folder, folder)
    if trained:
        write_trained_weights(trained, folder / TRAINED_WEIGHTS_FILE)
