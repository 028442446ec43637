"""Gates on a Whisper's attentions: each learns how much of what it gathered a position takes.

As in the gated-attention paper (Wagner et al., equation 4): sigmoid(G(x)) * attention(x), where x
is what the attention's queries are made of, and G one linear layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention

from speechquant.exporter.gate_kinds import GATES_KEY, HEAD_GATES

# A student begins with the teacher's layers, which know no gates: they begin nearly open.
_OPEN_AT_FIRST = 0.9


class Gate(nn.Module):
    """A share for each position, of all heads together or of each head from its own part of x.

    It is spelled as a weighted sum and not as a matrix product, and so stays float in a W8A8 graph.
    """

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, size // heads))
        odds = _OPEN_AT_FIRST / (1 - _OPEN_AT_FIRST)
        self.bias = nn.Parameter(torch.full((heads,), math.log(odds)))

    def forward(self, hidden: Tensor, gathered: Tensor) -> Tensor:
        """Return the gated part of `gathered`, both [batch, positions, size]."""
        heads, width = self.weight.shape
        parts = hidden.unflatten(-1, (heads, width)) if heads > 1 else hidden.unsqueeze(-2)
        shares = torch.sigmoid((parts * self.weight).sum(-1) + self.bias)
        if heads > 1:
            # Only `gathered` as it is lets a backend see the attention that it fuses.
            shares = (shares.unsqueeze(-1) * torch.ones(width)).flatten(-2)
        return gathered * shares


class GatedAttention(WhisperAttention):
    """The attention of transformers, with `gate` before its output projection."""

    gate: Gate

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what transformers' attention returns."""

        def gated(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            return (self.gate(hidden_states, *given),)

        handle = self.out_proj.register_forward_pre_hook(gated)
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            handle.remove()


def attach_gates(model: Any, kind: str) -> None:
    """Give every attention of a Whisper a gate of `kind`, in place, and say so in its config."""
    for module in list(model.modules()):
        if isinstance(module, WhisperAttention):
            heads = module.num_heads if kind == HEAD_GATES else 1
            module.gate = Gate(heads, module.embed_dim)
            module.__class__ = GatedAttention
    setattr(model.config, GATES_KEY, kind)


class GatedWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """A Whisper whose attentions have the gates that its configuration names.

    Its name in a checkpoint keeps transformers from reading it without its gates.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        attach_gates(self, getattr(config, GATES_KEY))
