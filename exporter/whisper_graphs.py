"""The forward passes of a Whisper model as they go into its graphs.

They run the checkpoint's own layers with attention spelled out, so that its products are plain
nodes. Keys and values are [batch, heads, positions, head size].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Added to the scores of later tokens: the exponential of it is zero in float32 and in float16,
# and float16 can hold it, which -1e9 it cannot.
_MASKED_SCORE = -1e4


class PlainAttention(nn.Module):
    """One attention: queries come from its input, keys and values are given."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj
        self.heads = attention.num_heads
        self.scaling = attention.head_dim**-0.5
        self.gate = getattr(attention, "gate", None)

    def split(self, hidden: Tensor) -> Tensor:
        """Return [batch, heads, positions, head size] of [batch, positions, size]."""
        batch, positions, size = hidden.shape
        return hidden.reshape(batch, positions, self.heads, size // self.heads).transpose(1, 2)

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is attended to in `hidden`."""
        return self.split(self.k_proj(hidden)), self.split(self.v_proj(hidden))

    def forward(
        self, hidden: Tensor, keys: Tensor, values: Tensor, score_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what each position of `hidden` gathers from the values, and by what weights."""
        queries = self.split(self.q_proj(hidden) * self.scaling)
        scores = queries @ keys.transpose(2, 3)
        if score_bias is not None:
            scores = scores + score_bias
        weights = torch.softmax(scores, dim=-1)
        gathered = (weights @ values).transpose(1, 2).flatten(2)
        if self.gate is not None:
            gathered = self.gate(hidden, gathered)
        return self.out_proj(gathered), weights


class _FeedForward(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.final_layer_norm, self.fc1, self.fc2 = layer.final_layer_norm, layer.fc1, layer.fc2
        self.activation = layer.activation_fn

    def forward(self, hidden: Tensor) -> Tensor:
        activated = self.activation(self.fc1(self.final_layer_norm(hidden)))
        return hidden + self.fc2(activated)  # type: ignore[no-any-return]


class _EncoderLayer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn = PlainAttention(layer.self_attn)
        self.self_attn_layer_norm = layer.self_attn_layer_norm
        self.feed_forward = _FeedForward(layer)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.self_attn_layer_norm(hidden)
        keys, values = self.self_attn.keys_and_values(normed)
        hidden = hidden + self.self_attn(normed, keys, values)[0]
        return self.feed_forward(hidden)  # type: ignore[no-any-return]


class EncoderGraph(nn.Module):
    """`features [batch, mels, frames] -> hidden [batch, positions, size]`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        encoder = model.model.encoder
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.embed_positions = encoder.embed_positions
        self.layers = nn.ModuleList(map(_EncoderLayer, encoder.layers))
        self.layer_norm = encoder.layer_norm

    def forward(self, features: Tensor) -> Tensor:
        """Return the hidden states; less than a chunk of features may be given."""
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(features))))
        hidden = hidden.transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        normed: Tensor = self.layer_norm(hidden)
        return normed


class _DecoderLayer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn = PlainAttention(layer.self_attn)
        self.self_attn_layer_norm = layer.self_attn_layer_norm
        self.encoder_attn = PlainAttention(layer.encoder_attn)
        self.encoder_attn_layer_norm = layer.encoder_attn_layer_norm
        self.feed_forward = _FeedForward(layer)

    def forward(
        self,
        hidden: Tensor,
        past: tuple[Tensor, Tensor] | None,
        cross: tuple[Tensor, Tensor],
        score_bias: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Return the hidden states, the tokens' keys and values, and the cross-attention."""
        normed = self.self_attn_layer_norm(hidden)
        keys, values = self.self_attn.keys_and_values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        hidden = hidden + self.self_attn(normed, keys, values, score_bias)[0]
        gathered, weights = self.encoder_attn(self.encoder_attn_layer_norm(hidden), *cross)
        return self.feed_forward(hidden + gathered), (keys, values), weights


class DecoderParts(nn.Module):
    """What the graphs of the decoder share, and so name alike."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.embed_tokens, self.embed_positions = decoder.embed_tokens, decoder.embed_positions
        self.layers: Any = nn.ModuleList(map(_DecoderLayer, decoder.layers))
        self.layer_norm = decoder.layer_norm
        tokens, size = model.proj_out.weight.shape
        self.head = nn.Linear(size, tokens, bias=False)
        # A copy: where the head is the embedding's own tensor, the graph would turn it around at
        # every step, and it could not be quantized, since only constant weights are. Once traced,
        # `share_embedding` has the embedding read the head.
        self.head.weight.data = model.proj_out.weight.data.clone()

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return the states of tokens from the first position on."""
        embedded: Tensor = self.embed_tokens(tokens)
        return embedded + self.embed_positions.weight[: tokens.shape[1]]  # type: ignore[no-any-return]


def later_masked(tokens: Tensor, hidden: Tensor) -> Tensor:
    """Return what is added to the scores so that no token sees a later one."""
    order = torch.arange(tokens.shape[1])
    is_later = order[None, :] > order[:, None]
    return is_later.to(hidden.dtype) * _MASKED_SCORE


class PrefillGraph(nn.Module):
    """`(tokens [batch, prompt], hidden) -> (logits [batch, prompt, tokens], caches)`.

    The caches are, for each layer, the keys and values of the tokens and then of the encoder.
    """

    def __init__(self, decoder: DecoderParts) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every token of the prompt, and the caches."""
        decoder = self.decoder
        score_bias = later_masked(tokens, hidden)
        states = decoder.embedded(tokens)
        own, cross = [], []
        for layer in decoder.layers:
            cross.append(layer.encoder_attn.keys_and_values(hidden))
            states, pair, _ = layer(states, None, cross[-1], score_bias)
            own.append(pair)
        logits = decoder.head(decoder.layer_norm(states))
        return (logits, *(cache for pair in (*own, *cross) for cache in pair))


class StepGraph(nn.Module):
    """`(tokens [batch, 1], caches) -> (logits [batch, 1, tokens], the tokens' caches)`."""

    def __init__(self, decoder: DecoderParts) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Return the next logits and the caches with this token's keys and values added."""
        decoder = self.decoder
        pairs = list(zip(caches[::2], caches[1::2], strict=True))
        own, cross = pairs[: len(decoder.layers)], pairs[len(decoder.layers) :]
        # Gathered: a slice at the length of the past would bound that length while tracing.
        position = torch.arange(caches[0].shape[2], caches[0].shape[2] + 1)
        states = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[position]
        grown: list[Tensor] = []
        for layer, past, kept in zip(decoder.layers, own, cross, strict=True):
            states, pair, _ = layer(states, past, kept, None)
            grown += pair
        return (decoder.head(decoder.layer_norm(states)), *grown)


class AlignGraph(nn.Module):
    """`(tokens [batch, prompt], hidden) -> (attention, logits [batch, 1, tokens])`.

    The attention, [batch, heads, prompt, positions], is what the alignment heads pay to the encoder
    at each token. `alignment_heads` are pairs of layer and head.
    """

    def __init__(self, decoder: DecoderParts, alignment_heads: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.decoder, self.alignment_heads = decoder, tuple(alignment_heads)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention, and the logits after the last token."""
        decoder = self.decoder
        score_bias = later_masked(tokens, hidden)
        states = decoder.embedded(tokens)
        weights = []
        for layer in decoder.layers:
            cross = layer.encoder_attn.keys_and_values(hidden)
            states, _, paid = layer(states, None, cross, score_bias)
            weights.append(paid)
        attention = torch.stack(
            [weights[layer][:, head] for layer, head in self.alignment_heads], 1
        )
        # The head is here for its matrix, in which tokens are looked up: without it the embedding
        # would be stored and quantized on its own.
        return attention, decoder.head(decoder.layer_norm(states[:, -1:]))
