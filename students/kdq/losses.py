"""What a KDQ student lowers: equations 4, 5, 11, 13 and 14 of the paper.

Logits and hidden states are [tokens, ...]: of the tokens alone that somebody has to foresee.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weights:
    """alpha, beta and gamma of equations 13 and 14; the paper names no beta."""

    distillation: float = 0.5
    hidden: float = 1.0
    quantization: float = 1.0


def prediction_loss(
    teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return KL(teacher || student) of logits at a temperature, per token: equation 4."""
    from torch.nn.functional import kl_div, log_softmax

    others = log_softmax(teacher.float() / temperature, -1)
    own = log_softmax(student.float() / temperature, -1)
    return kl_div(own, others, reduction="batchmean", log_target=True)


def hidden_costs(
    student: Sequence[torch.Tensor], transformed: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the mean square between each state of the student and each W_A H of the teacher."""
    import torch
    from torch.nn.functional import mse_loss

    rows = [[mse_loss(own.float(), other.float()) for other in transformed] for own in student]
    return torch.stack([torch.stack(row) for row in rows])


def matched(costs: torch.Tensor, layer_map: Sequence[int]) -> torch.Tensor:
    """Return the cost of each layer of the student under a map; the mean of it is equation 5."""
    import torch

    return costs[torch.arange(len(layer_map)), torch.tensor(layer_map)]


def quantization_loss(
    weights: Sequence[torch.Tensor], rounded: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the mean of |W - Q| over the numbers of a layer: equation 11.

    Q counts as constant, so that the weights are drawn to their levels.
    """
    pairs = zip(weights, rounded, strict=True)
    distances = [(own - level.detach()).abs().sum() for own, level in pairs]
    count = sum(own.numel() for own in weights)
    return sum(distances[1:], distances[0]) / count


def layers_to_quantize(losses: Sequence[float], share: float) -> list[int]:
    """Return the share of the layers with the lowest distillation loss, at least one, in order."""
    count = math.ceil(share * len(losses))
    ranked = sorted(range(len(losses)), key=lambda layer: losses[layer])
    return sorted(ranked[:count])


def whole_loss(
    distillation: torch.Tensor,
    quantization: torch.Tensor | float,
    cross_entropy: torch.Tensor,
    weights: Weights,
) -> torch.Tensor:
    """Return equation 14."""
    alpha = weights.distillation
    return alpha * distillation + weights.quantization * quantization + (1 - alpha) * cross_entropy
