"""WavLM's gated relative position attention, written so that it leaves a clean graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class PlainWavLMAttention(nn.Module):
    """The arithmetic of transformers' WavLMAttention without torch's fused attention call.

    The fused call leaves IsNaN and Where nodes behind and takes no additive padding mask.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads: int = original.num_heads
        self.head_size: int = original.head_dim
        self.buckets: int = original.num_buckets
        self.max_distance: int = original.max_distance
        self.q_proj, self.k_proj = original.q_proj, original.k_proj
        self.v_proj, self.out_proj = original.v_proj, original.out_proj
        self.gru_rel_pos_linear = original.gru_rel_pos_linear
        self.gru_rel_pos_const = original.gru_rel_pos_const
        # Only the first block has the embedding; the others are handed its bias.
        self.rel_attn_embed = getattr(original, "rel_attn_embed", None)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None, Tensor]:
        """Return (output, None, position bias), as the original does; the mask is additive."""
        if position_bias is None:
            position_bias = self._position_bias(hidden_states.shape[1])
        shape = (hidden_states.shape[0], hidden_states.shape[1], self.heads, self.head_size)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).permute(0, 2, 3, 1)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        scores = torch.matmul(query, key) * self.head_size**-0.5
        scores = scores + self._gate(hidden_states.view(shape)) * position_bias
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        merged = mixed.transpose(1, 2).reshape(shape[0], shape[1], self.heads * self.head_size)
        output: Tensor = self.out_proj(merged)
        return output, None, position_bias

    def _gate(self, by_head: Tensor) -> Tensor:
        """Return the gate on the position bias, [batch, heads, frames, 1]."""
        projected = self.gru_rel_pos_linear(by_head.permute(0, 2, 1, 3))
        halves = projected.unflatten(-1, (2, 4)).sum(-1)
        gate_a, gate_b = torch.sigmoid(halves).chunk(2, dim=-1)
        gate: Tensor = gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0
        return gate

    def _position_bias(self, frames: int) -> Tensor:
        """Return the bias by distance, [1, heads, frames, frames]."""
        if self.rel_attn_embed is None:
            raise ValueError(
                "the first block of a WavLM encoder has no relative position embedding"
            )
        position = torch.arange(frames)
        bucket = self._bucket_of(position[None, :] - position[:, None])
        embedded: Tensor = self.rel_attn_embed(bucket)
        return embedded.permute(2, 0, 1).unsqueeze(0)

    def _bucket_of(self, distance: Tensor) -> Tensor:
        half = self.buckets // 2
        exact = half // 2
        magnitude = distance.abs()
        is_near = (magnitude < exact).to(torch.long)
        # The clamp keeps the logarithm finite where `is_near` discards it anyway.
        ratio = torch.log(magnitude.clamp(min=1).float() / exact)
        spread = ratio / math.log(self.max_distance / exact) * (half - exact)
        far = (exact + spread).to(torch.long).clamp(max=half - 1)
        side = (distance > 0).to(torch.long) * half
        return side + is_near * magnitude + (1 - is_near) * far
