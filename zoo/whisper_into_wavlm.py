"""A WavLM made of a Whisper's encoder blocks, and the states of both side by side.

A pre-norm WavLM and a Whisper have the same transformer block, but for the positions. Whisper adds
one to each frame, and its heads look to the frames around by them; WavLM's heads have a bias for
each distance. What comes before differs too: log-mel and two convolutions, convolutions over the
waveform alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.training.whisper import log_mels
from speechquant.zoo.filter_bank import CHANNELS, FILTER_SAMPLES, HOP_SAMPLES, SUMS
from speechquant.zoo.models import VOCABULARY

if TYPE_CHECKING:
    import torch

FRAME_SAMPLES = 320
# The first WavLM frame is the middle of 1,040 samples; Whisper's is the first sample it is given.
DELAY_SAMPLES = 520
# Every frame of the student stands at this place of the teacher. The blocks never saw a frame
# without one: positions are six sevenths of the variance that the first norm measures.
PLACE = 200
_LEAST_VARIANCE = 0.01  # of a channel, in parts of the mean
# Whisper hears how loud a recording is, a WavLM of normalised waves does not: the teacher is
# given all at the loudness of common speech, its root mean square in parts of full scale.
TEACHER_RMS = 0.07

_SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    # A bank of filters, mel bands, a layer to shape them, and two as in Whisper's stem.
    "conv_dim": (CHANNELS, SUMS, 320, 384, 384),
    "conv_kernel": (FILTER_SAMPLES, 1, 1, 3, 3),
    "conv_stride": (HOP_SAMPLES, 1, 1, 1, 2),
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # What Whisper learned without: dropped channels of its large constant ones upset every norm.
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "ctc_zero_infinity": True,
    "ctc_loss_reduction": "mean",
}
# The convolution over frames begins with next to nothing: no block knows what it would say.
_QUIET = 0.05
# WavLM's name of each part of a block, and Whisper's.
_PARTS = {
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.out_proj",
    "layer_norm": "self_attn_layer_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "final_layer_norm",
}


def read_teacher(folder: Path) -> Any:
    """Return the encoder of a Whisper checkpoint, in float32, not to be trained."""
    import torch
    from transformers import WhisperModel

    model = WhisperModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return model.encoder.eval().requires_grad_(False)


def read_student(folder: Path) -> Any:
    """Return the WavLMForCTC that an earlier run has written, in float32."""
    import torch
    from transformers import WavLMForCTC

    return WavLMForCTC.from_pretrained(folder, dtype=torch.float32)


def student_of(teacher: Any) -> Any:
    """Return a WavLMForCTC with the blocks and the last norm of `teacher`, the rest untrained.

    Its heads look to no distance more than to others, until they are told to.
    """
    from transformers import WavLMConfig, WavLMForCTC

    given = teacher.config
    student: Any = WavLMForCTC(
        WavLMConfig(
            hidden_size=given.d_model,
            num_hidden_layers=given.encoder_layers,
            num_attention_heads=given.encoder_attention_heads,
            intermediate_size=given.encoder_ffn_dim,
            **_SHAPE,
        )
    )
    encoder = student.wavlm.encoder
    for own, layer in zip(encoder.layers, teacher.layers, strict=True):
        _copy_block(own, layer)
        own.attention.gru_rel_pos_linear.weight.data.zero_()
        own.attention.gru_rel_pos_linear.bias.data.zero_()
    encoder.layers[0].attention.rel_attn_embed.weight.data.zero_()
    encoder.layer_norm.load_state_dict(teacher.layer_norm.state_dict())
    encoder.pos_conv_embed.conv.parametrizations.weight.original0.data.mul_(_QUIET)
    return student


def _copy_block(own: torch.nn.Module, given: torch.nn.Module) -> None:
    for name, whisper_name in _PARTS.items():
        part: Any = own.get_submodule(name)
        taken: Any = given.get_submodule(whisper_name)
        part.weight.data.copy_(taken.weight)
        if taken.bias is None:  # Whisper's keys have none
            part.bias.data.zero_()
        else:
            part.bias.data.copy_(taken.bias)


def stem_features(teacher: Any, filters: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
    """Return what the teacher's convolutions make of waves of unit variance, at WavLM's frames.

    [clips, samples] to [clips, frames, width], all at one place.
    """
    from torch.nn.functional import gelu

    mels = log_mels(TEACHER_RMS * waves[:, DELAY_SAMPLES:], filters)
    hidden: torch.Tensor = gelu(teacher.conv2(gelu(teacher.conv1(mels)))).transpose(1, 2)
    return hidden[:, : frames_of(waves.shape[1])].float() + at_place(teacher.embed_positions.weight)


def at_place(rows: torch.Tensor) -> torch.Tensor:
    """Return the row of PLACE, the last one of a model with fewer."""
    return rows[min(PLACE, len(rows) - 1)]


def frames_of(samples: Any) -> Any:
    """Return how many frames the convolutions make of so many samples."""
    return (samples - 2 * DELAY_SAMPLES) // FRAME_SAMPLES + 1


def samples_of(frames: int) -> int:
    """Return the fewest samples that give so many frames."""
    return (frames - 1) * FRAME_SAMPLES + 2 * DELAY_SAMPLES


def front_end_features(student: Any, waves: torch.Tensor) -> torch.Tensor:
    """Return what the student's convolutions and projection make of waves, [clips, frames, width].

    The same values as its own forward pass gives, channels last: a layer norm over channels needs
    no transposed copy then, and the convolutions take a third of the time.
    """
    from torch.nn.functional import conv2d, linear

    first, *others = student.wavlm.feature_extractor.conv_layers
    width, stride = first.conv.kernel_size[0], first.conv.stride[0]
    hidden = linear(waves.unfold(1, width, stride), first.conv.weight[:, 0], first.conv.bias)
    hidden = first.activation(first.layer_norm(hidden))
    for layer in others:
        columns = hidden.transpose(1, 2)[:, :, None]
        kernel = layer.conv.weight[:, :, None]
        convolved = conv2d(columns, kernel, layer.conv.bias, stride=(1, layer.conv.stride[0]))
        hidden = layer.activation(layer.layer_norm(convolved[:, :, 0].transpose(1, 2)))
    projected: torch.Tensor = student.wavlm.feature_projection(hidden)[0]
    return projected.float()


def is_heard(frames: int, lengths: torch.Tensor) -> torch.Tensor:
    """Return which frames of clips of these samples are no padding, [clips, frames]."""
    import torch

    heard: torch.Tensor = torch.arange(frames)[None] < frames_of(lengths)[:, None]
    return heard


def at_own_places(teacher: Any, stem: torch.Tensor) -> torch.Tensor:
    """Return what the teacher's blocks are given: every frame at its own place."""
    positions: torch.Tensor = teacher.embed_positions.weight
    return stem + positions[: stem.shape[1]] - at_place(positions)


def teacher_states(teacher: Any, stem: torch.Tensor, heard: torch.Tensor) -> list[torch.Tensor]:
    """Return the states after every block of the teacher, and the last one normed."""
    hidden = at_own_places(teacher, stem)
    # Booleans: to attention in float64 PyTorch 2.13 adds a mask of float32 as if it were float64.
    mask = heard[:, None, None]
    states = []
    for layer in teacher.layers:
        given = layer(hidden, attention_mask=mask)
        hidden = given[0] if isinstance(given, tuple) else given
        states.append(hidden)
    return [*states, teacher.layer_norm(hidden)]


def student_states(student: Any, features: torch.Tensor, heard: torch.Tensor) -> list[torch.Tensor]:
    """Return the states after every block of the student, and the last one normed."""
    import torch

    encoder = student.wavlm.encoder
    features = features * heard[..., None]
    hidden = encoder.dropout(features + encoder.pos_conv_embed(features))
    frames = features.shape[1]
    with torch.no_grad():
        bias = encoder.layers[0].attention.compute_bias(frames, frames)
    states = []
    for layer in encoder.layers:
        attended = _attended(layer.attention, layer.layer_norm(hidden), heard, bias)
        hidden = hidden + layer.dropout(attended)
        hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
        states.append(hidden)
    return [*states, encoder.layer_norm(hidden)]


def _attended(
    attention: Any, hidden: torch.Tensor, heard: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return what WavLM's attention gives, its biases and gates held as they are.

    Without their gradients attention is one fused operation, and a step takes four fifths as long.
    """
    import torch

    def heads_of(values: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = values.unflatten(-1, (attention.num_heads, -1))
        return heads.transpose(1, 2)

    query, key, value = (
        heads_of(getattr(attention, f"{name}_proj")(hidden)) for name in ("q", "k", "v")
    )
    with torch.no_grad():
        grouped = attention.gru_rel_pos_linear(heads_of(hidden)).unflatten(-1, (2, 4)).sum(-1)
        gates = grouped.float().sigmoid()
        shares = gates[..., :1] * (gates[..., 1:] * attention.gru_rel_pos_const - 1) + 2
        added = shares.to(query.dtype) * bias.to(query.dtype)
        added.masked_fill_(~heard[:, None, None], float("-inf"))
    gathered = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=added, scale=attention.scaling
    )
    result: torch.Tensor = attention.out_proj(gathered.transpose(1, 2).flatten(2))
    return result


def unexplained(
    states: list[torch.Tensor], targets: list[torch.Tensor], heard: torch.Tensor
) -> torch.Tensor:
    """Return the error of each state, by channel in parts of its target's variance over frames.

    By channel, or the few outlying channels would be all that is learned. A channel that hardly
    moves counts as one with a hundredth of the mean variance.
    """
    import torch

    rows = []
    for state, target in zip(states, targets, strict=True):
        wanted = target[heard].float()
        error = (state[heard].float() - wanted).square().mean(0)
        variance = wanted.var(0)
        rows.append((error / variance.clamp_min(_LEAST_VARIANCE * variance.mean())).mean())
    return torch.stack(rows)
