"""The group norm of a front end, one group a channel, written to stay exact in a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainChannelNorm(nn.Module):
    """The arithmetic of torch's GroupNorm with as many groups as channels.

    It becomes InstanceNormalization otherwise, for which ONNX Runtime sums (x - mean)^2 in float32.
    In a padded clip most of these are tiny and are lost beside the sum of the others: logits of 22
    were off by 6e-4. Squares of zeros are zeros, so the mean of x^2 loses nothing.
    """

    def __init__(self, original: nn.GroupNorm) -> None:
        super().__init__()
        if original.num_groups != original.num_channels:
            raise ValueError(f"{original.num_groups} groups for {original.num_channels} channels")
        self.weight, self.bias, self.epsilon = original.weight, original.bias, original.eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `hidden`, [batch, channels, time], normalised over time."""
        mean = hidden.mean(-1, keepdim=True)
        # Rounding can take the variance of a constant channel below zero.
        variance = ((hidden * hidden).mean(-1, keepdim=True) - mean * mean).clamp(min=0.0)
        scale = self.weight[:, None] * torch.rsqrt(variance + self.epsilon)
        return hidden * scale + (self.bias[:, None] - mean * scale)
