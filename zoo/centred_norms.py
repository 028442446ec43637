"""Norms whose outputs have a mean of zero, and the same function.

A Whisper's norms give large constants beside what they say of a frame. All weights that read such a
constant get gradients alike, so that one step of Adam moves what they give together by hundreds of
times its rate. The constant belongs into the bias behind, where a step moves it by the rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from speechquant.zoo.whisper_into_wavlm import student_states

if TYPE_CHECKING:
    import torch


def centre_norms(student: Any, features: torch.Tensor) -> None:
    """Move the mean of what each norm and value gives into the biases of the layers that read it.

    `features`, [clips, frames, width], are what the blocks are given. The gates of WavLM's position
    biases read a norm as well, head by head with one bias, so they must not depend on it yet.
    """
    pairs = list(_given_and_readers(student))
    means = _means([given for given, _ in pairs], student, features)
    for (given, readers), mean in zip(pairs, means, strict=True):
        for reader in readers:
            reader.bias.data += reader.weight.data @ mean
        given.bias.data -= mean


def _given_and_readers(student: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    # The last norm stays as it is: what it gives is compared with what the teacher's gives.
    for layer in student.wavlm.encoder.layers:
        attention = layer.attention
        if attention.gru_rel_pos_linear.weight.any():
            raise ValueError("the gates of the position biases are trained; centre before that")
        yield layer.layer_norm, (attention.q_proj, attention.k_proj, attention.v_proj)
        # The shares of a softmax sum to one, so a constant value comes out as it is.
        yield attention.v_proj, (attention.out_proj,)
        yield layer.final_layer_norm, (layer.feed_forward.intermediate_dense,)


def _means(modules: Sequence[Any], student: Any, features: torch.Tensor) -> list[torch.Tensor]:
    import torch

    totals: list[Any] = [0] * len(modules)

    def add(index: int, given: torch.Tensor) -> None:
        totals[index] = totals[index] + given.mean((0, 1))

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, given, index=index: add(index, given))
        for index, module in enumerate(modules)
    ]
    heard = torch.ones(1, features.shape[1], dtype=torch.bool)
    try:
        with torch.no_grad():
            for clip in features:
                student_states(student, clip[None], heard)
    finally:
        for hook in hooks:
            hook.remove()
    return [total / len(features) for total in totals]
