"""A HuBERT made of a Whisper's encoder blocks, and the states of both side by side.

A pre-norm HuBERT and a Whisper have the same transformer block. They differ in what comes before:
log-mel, two convolutions and absolute positions in one, seven convolutions over the waveform and a
convolution over frames for positions in the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.training.whisper import log_mels
from speechquant.zoo.models import VOCABULARY

if TYPE_CHECKING:
    import torch

FRAME_SAMPLES = 320
# The first HuBERT frame is the middle of 400 samples; Whisper's is the first sample it is given.
DELAY_SAMPLES = 200
# The blocks never saw a state without a position: they begin with the mean of the first 10 s.
_MEAN_OF_POSITIONS = 500
_LEAST_VARIANCE = 0.01  # of a channel, in parts of the mean
# Whisper hears how loud a recording is, a HuBERT of normalised waves does not: the teacher is
# given all at the loudness of common speech, its root mean square in parts of full scale.
TEACHER_RMS = 0.07

_SHAPE: dict[str, Any] = {
    "attn_implementation": "sdpa",  # the one that takes a mask of booleans
    "vocab_size": len(VOCABULARY),
    # Wide from the start: narrow first layers have few channels to have outliers in.
    "conv_dim": (128, 128, 192, 256, 320, 384, 384),
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "ctc_zero_infinity": True,
    "ctc_loss_reduction": "mean",
}
# HuBERT's name of each part of a block, and Whisper's.
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


def read_hubert(folder: Path) -> Any:
    """Return the HubertForCTC of a checkpoint, in float32."""
    import torch
    from transformers import HubertForCTC

    return HubertForCTC.from_pretrained(folder, dtype=torch.float32).eval()


def student_of(teacher: Any) -> Any:
    """Return a HubertForCTC with the blocks and the last norm of `teacher`, the rest untrained."""
    from transformers import HubertConfig, HubertForCTC

    given = teacher.config
    student: Any = HubertForCTC(
        HubertConfig(
            hidden_size=given.d_model,
            num_hidden_layers=given.encoder_layers,
            num_attention_heads=given.encoder_attention_heads,
            intermediate_size=given.encoder_ffn_dim,
            **_SHAPE,
        )
    )
    encoder = student.hubert.encoder
    for own, layer in zip(encoder.layers, teacher.layers, strict=True):
        _copy_block(own, layer)
    encoder.layer_norm.load_state_dict(teacher.layer_norm.state_dict())
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


def widen_front_end(student: Any, given: Any) -> None:
    """Give the student the convolutions of another HuBERT, each channel as often as there is room.

    Copies share what comes after them, so that about the same comes out; they differ by a tenth,
    or they would stay the same for ever.
    """
    import torch

    own = student.hubert.feature_extractor.conv_layers
    for layer, narrow in zip(own, given.hubert.feature_extractor.conv_layers, strict=True):
        width, width_before = layer.conv.weight.shape[:2]
        rows = torch.arange(width) % narrow.conv.weight.shape[0]
        columns = torch.arange(width_before) % narrow.conv.weight.shape[1]
        copies = torch.bincount(columns)[columns]
        kernel = narrow.conv.weight[rows][:, columns] / copies[:, None]
        layer.conv.weight.data.copy_(kernel * (1 + 0.1 * torch.randn(kernel.shape)))
        layer.conv.bias.data.copy_(narrow.conv.bias[rows])
        layer.layer_norm.weight.data.copy_(narrow.layer_norm.weight[rows])
        layer.layer_norm.bias.data.copy_(narrow.layer_norm.bias[rows])


def stem_features(teacher: Any, filters: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
    """Return what the teacher's convolutions make of waves of unit variance, at HuBERT's frames.

    [clips, samples] to [clips, frames, width], all at one mean position.
    """
    from torch.nn.functional import gelu

    mels = log_mels(TEACHER_RMS * waves[:, DELAY_SAMPLES:], filters)
    hidden: torch.Tensor = gelu(teacher.conv2(gelu(teacher.conv1(mels)))).transpose(1, 2)
    return hidden[:, : frames_of(waves.shape[1])].float() + _mean_position(teacher)


def _mean_position(teacher: Any) -> torch.Tensor:
    mean: torch.Tensor = teacher.embed_positions.weight[:_MEAN_OF_POSITIONS].mean(0)
    return mean


def frames_of(samples: Any) -> Any:
    """Return how many frames the seven convolutions make of so many samples."""
    return (samples - 2 * DELAY_SAMPLES) // FRAME_SAMPLES + 1


def front_end_features(student: Any, waves: torch.Tensor) -> torch.Tensor:
    """Return what the student's convolutions and projection make of waves, [clips, frames, width].

    The same values as its own forward pass gives, channels last: a layer norm over channels needs
    no transposed copy then, and the convolutions take a third of the time.
    """
    from torch.nn.functional import conv2d, linear

    first, *others = student.hubert.feature_extractor.conv_layers
    width, stride = first.conv.kernel_size[0], first.conv.stride[0]
    hidden = linear(waves.unfold(1, width, stride), first.conv.weight[:, 0], first.conv.bias)
    hidden = first.activation(first.layer_norm(hidden))
    for layer in others:
        columns = hidden.transpose(1, 2)[:, :, None]
        kernel = layer.conv.weight[:, :, None]
        convolved = conv2d(columns, kernel, layer.conv.bias, stride=(1, layer.conv.stride[0]))
        hidden = layer.activation(layer.layer_norm(convolved[:, :, 0].transpose(1, 2)))
    projected: torch.Tensor = student.hubert.feature_projection(hidden)
    return projected.float()


def is_heard(frames: int, lengths: torch.Tensor) -> torch.Tensor:
    """Return which frames of clips of these samples are no padding, [clips, frames]."""
    import torch

    heard: torch.Tensor = torch.arange(frames)[None] < frames_of(lengths)[:, None]
    return heard


def _through_layers(module: Any, hidden: torch.Tensor, heard: torch.Tensor) -> list[torch.Tensor]:
    # Booleans: to attention in float64 PyTorch 2.13 adds a mask of float32 as if it were float64.
    mask = heard[:, None, None]
    states = []
    for layer in module.layers:
        given = layer(hidden, attention_mask=mask)
        hidden = given[0] if isinstance(given, tuple) else given
        states.append(hidden)
    return [*states, module.layer_norm(hidden)]


def teacher_states(teacher: Any, stem: torch.Tensor, heard: torch.Tensor) -> list[torch.Tensor]:
    """Return the states after every block of the teacher, and the last one normed."""
    positions = teacher.embed_positions.weight[: stem.shape[1]] - _mean_position(teacher)
    return _through_layers(teacher, stem + positions, heard)


def student_states(student: Any, features: torch.Tensor, heard: torch.Tensor) -> list[torch.Tensor]:
    """Return the states after every block of the student, and the last one normed."""
    encoder = student.hubert.encoder
    features = features * heard[..., None]
    hidden = encoder.dropout(features + encoder.pos_conv_embed(features))
    return _through_layers(encoder, hidden, heard)


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
