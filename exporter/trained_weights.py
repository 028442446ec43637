"""Weights that a checkpoint was trained with as levels, on their way into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from speechquant.core.errors import CheckpointError
from speechquant.core.weights import TRAINED_WEIGHTS_FILE, TrainedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_own(weights: Mapping[str, TrainedWeight], model: PreTrainedModel, source: str) -> None:
    """Raise CheckpointError where the levels are not those of the model's weights."""
    known = model.state_dict()
    for name, weight in weights.items():
        if name not in known or not np.array_equal(known[name].float().numpy(), weight.values):
            raise CheckpointError(
                f"{source}: {TRAINED_WEIGHTS_FILE} has other values for {name} than the model; "
                f"copy the checkpoint again, or delete the file to have weights rounded anew"
            )


def named_in_graph(weights: Mapping[str, TrainedWeight]) -> dict[str, TrainedWeight]:
    """Return a Whisper's weights by their names in the graphs, where products stand on the left."""
    return {
        name.removeprefix("model.").replace(".fc", ".feed_forward.fc"): weight.transposed
        for name, weight in weights.items()
    }
