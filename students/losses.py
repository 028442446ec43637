"""What a student is to lower: equation 1 of the gated-attention paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED = -100  # a token that nobody has to foresee


def cross_entropy_and_divergence(
    student: torch.Tensor, teacher: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy of the wanted tokens and KL(teacher || student), both per token.

    Logits are [clips, tokens, vocabulary]. The divergence is taken as in Distil-Whisper, which the
    paper's weights are from, at a temperature of one.
    """
    from torch.nn.functional import kl_div, log_softmax, nll_loss

    heard = wanted != IGNORED
    own = log_softmax(student[heard].float(), -1)
    others = log_softmax(teacher[heard].float(), -1)
    divergence = kl_div(own, others, reduction="batchmean", log_target=True)
    return nll_loss(own, wanted[heard]), divergence
