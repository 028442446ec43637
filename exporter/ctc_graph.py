"""The forward pass of a CTC model as it goes into the graph: padding masked by true lengths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from speechquant.core.ctc import receptive_field
from speechquant.exporter.channel_norm import PlainChannelNorm
from speechquant.exporter.wavlm_attention import PlainWavLMAttention

# Added to the scores of padded frames: the exponential of it is zero in float32 and in float16,
# and float16 can hold it, which -1e9 it cannot.
_MASKED_SCORE = -1e4


class CtcGraph(nn.Module):
    """`(input_values [batch, samples], input_lengths [batch]) -> logits [batch, frames, labels]`.

    It runs the checkpoint's own modules, which it takes over: do not use the model afterwards.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        base = getattr(model, model.base_model_prefix)
        config = model.config
        self.feature_extractor = base.feature_extractor
        self.feature_projection = base.feature_projection
        self.encoder = base.encoder
        self.head = model.lm_head
        self.is_wavlm = config.model_type == "wavlm"
        # By its class: data2vec's encoder ignores the setting do_stable_layer_norm.
        self.is_pre_norm = "StableLayerNorm" in type(base.encoder).__name__
        self.frame_stride = math.prod(config.conv_stride)
        self.receptive_field = receptive_field(config.conv_kernel, config.conv_stride)
        self._fold_weight_norm()
        first = self.feature_extractor.conv_layers[0]
        if isinstance(first.layer_norm, nn.GroupNorm):
            first.layer_norm = PlainChannelNorm(first.layer_norm)
        if self.is_wavlm:
            for layer in self.encoder.layers:
                layer.attention = PlainWavLMAttention(layer.attention)

    def _fold_weight_norm(self) -> None:
        # Left as it is, the weight would be computed in the graph and the layer could not be
        # quantized, since only constant weights are.
        for module in self.encoder.modules():
            if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")

    def forward(self, input_values: Tensor, input_lengths: Tensor) -> Tensor:
        """Return the logits; frames beyond a clip's own length mean nothing."""
        features = self.feature_extractor(input_values).transpose(1, 2)
        hidden = self.feature_projection(features)
        if isinstance(hidden, tuple):
            hidden = hidden[0]
        frames = features.shape[1]
        # A frame is real when the samples it sees lie within the clip. Compared this way there
        # is no division, which would leave a dozen nodes for negative lengths behind.
        last_sample = torch.arange(frames) * self.frame_stride + self.receptive_field
        is_padding = (last_sample[None, :] > input_lengths[:, None]).to(hidden.dtype)
        keep = (1.0 - is_padding)[:, :, None]
        score_bias = is_padding[:, None, None, :] * _MASKED_SCORE
        hidden = hidden * keep
        hidden = hidden + self._positions(hidden, keep)
        if not self.is_pre_norm:
            hidden = self.encoder.layer_norm(hidden)
        hidden = self._blocks(hidden, score_bias)
        if self.is_pre_norm:
            hidden = self.encoder.layer_norm(hidden)
        logits: Tensor = self.head(hidden)
        return logits

    def _positions(self, hidden: Tensor, keep: Tensor) -> Tensor:
        embed = self.encoder.pos_conv_embed
        if not hasattr(embed, "layers"):
            embedded: Tensor = embed(hidden)
            return embedded
        # data2vec stacks convolutions. Alone, a clip is padded with zeros before each of them, so
        # what one writes into the padding of a batch must not reach the next.
        position, keep = hidden.transpose(1, 2), keep.transpose(1, 2)
        for layer in embed.layers:
            position = layer(position) * keep
        return position.transpose(1, 2)

    def _blocks(self, hidden: Tensor, score_bias: Tensor) -> Tensor:
        position_bias = None
        for layer in self.encoder.layers:
            if self.is_wavlm:
                hidden, position_bias = layer(
                    hidden, attention_mask=score_bias, position_bias=position_bias
                )
            else:
                hidden = layer(hidden, attention_mask=score_bias)
        return hidden
