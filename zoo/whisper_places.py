"""What Whisper's absolute positions do, told to a WavLM as what each head adds for a distance.

Positions are in a Whisper's states in two ways. Part of each state is the place of its frame and
nothing else: the mean over many clips at that frame. And its heads look to frames around by them:
a head's scores, averaged over all pairs of frames of one distance, are what a WavLM's position
bias is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.zoo.whisper_into_wavlm import at_own_places, at_place, teacher_states

if TYPE_CHECKING:
    import torch

# WavLM's gate, its linear layer at zero, is 0.5 (0.5 c - 1) + 2 of its constant c.
_GATE_AT_ZERO, _GATE_BY_CONSTANT = 1.5, 0.25
_FIT_ROUNDS = 5


@dataclass(frozen=True)
class PlaceMeans:
    """The mean state of each frame over many clips: what its place alone makes of it."""

    rows: tuple[torch.Tensor, ...]  # of each block, and of the last norm: [frames, width]

    def at_one_place(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the states as if all frames stood at PLACE."""
        return [
            state - means[: state.shape[1]] + at_place(means)
            for state, means in zip(states, self.rows, strict=True)
        ]


def place_means(teacher: Any, stems: torch.Tensor) -> PlaceMeans:
    """Return the means over stems, [clips, frames, width]: many clips, as long as any to come."""
    import torch

    heard = torch.ones(1, stems.shape[1], dtype=torch.bool)
    sums: list[Any] = [0] * (len(teacher.layers) + 1)
    with torch.inference_mode():
        for stem in stems:
            states = teacher_states(teacher, stem[None], heard)
            sums = [total + state[0].float() for total, state in zip(sums, states, strict=True)]
    return PlaceMeans(tuple(total / len(stems) for total in sums))


def tell_distances(teacher: Any, student: Any, stems: torch.Tensor) -> None:
    """Give the student's heads the biases by which they look where the teacher's look.

    Layer by layer: what a head's scores with positions are beyond those without, after the layers
    before have been mended. One table of biases serves all layers, times a number for each head,
    so heads that look alike get the same column of it.
    """
    import torch

    attention = student.wavlm.encoder.layers[0].attention
    frames = stems.shape[1]
    steps = torch.arange(frames)
    buckets = attention._relative_positions_bucket(steps[None] - steps[:, None])
    with torch.inference_mode():
        wanted = _wanted_biases(teacher, stems, buckets, attention.num_buckets)
    table, scales, orders = shared_table(wanted)
    attention.rel_attn_embed.weight.data.copy_(torch.from_numpy(table.T))
    for layer, scale, order in zip(student.wavlm.encoder.layers, scales, orders, strict=True):
        _reorder_heads(layer.attention, order)
        constant = (torch.from_numpy(scale) - _GATE_AT_ZERO) / _GATE_BY_CONSTANT
        layer.attention.gru_rel_pos_const.data.copy_(constant.reshape(1, -1, 1, 1))


def _wanted_biases(
    teacher: Any, stems: torch.Tensor, buckets: torch.Tensor, count: int
) -> NDArray[np.float32]:
    """Return the bias of each layer, head and bucket, without a table that they share."""
    import torch

    moving, standing = at_own_places(teacher, stems), stems
    rows = []
    for layer in teacher.layers:
        beyond = _mean_scores(layer, moving, buckets, count) - _mean_scores(
            layer, standing, buckets, count
        )
        rows.append(beyond)
        moving = _block(layer, moving, None)
        standing = _block(layer, standing, beyond[:, buckets])
    found: NDArray[np.float32] = torch.stack(rows).numpy()
    return found


def _scores(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden)
    query, key = (
        project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)
        for project in (attention.q_proj, attention.k_proj)
    )
    scores: torch.Tensor = attention.scaling * query @ key.transpose(-1, -2)
    return scores


def _mean_scores(
    layer: Any, stems: torch.Tensor, buckets: torch.Tensor, count: int
) -> torch.Tensor:
    """Return the mean score of each head and bucket; a score counts from the mean of its row."""
    import torch

    pairs = torch.zeros(count).index_add_(0, buckets.flatten(), torch.ones(buckets.numel()))
    total = torch.zeros(layer.self_attn.num_heads, count)
    for stem in stems:
        scores = _scores(layer, stem)
        scores = (scores - scores.mean(-1, keepdim=True)).flatten(1)
        total.index_add_(1, buckets.flatten(), scores)
    return total / (pairs.clamp_min(1) * len(stems))


def _block(layer: Any, stems: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    import torch

    results = []
    for hidden in stems:
        scores = _scores(layer, hidden)
        shares = (scores if bias is None else scores + bias).softmax(-1)
        values = layer.self_attn.v_proj(layer.self_attn_layer_norm(hidden))
        values = values.unflatten(-1, (layer.self_attn.num_heads, -1)).transpose(0, 1)
        hidden = hidden + layer.self_attn.out_proj((shares @ values).transpose(0, 1).flatten(1))
        inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
        results.append(hidden + layer.fc2(inner))
    return torch.stack(results)


def shared_table(
    wanted: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return rows, a scale for each layer and row, and which head of each layer takes which row.

    `wanted` is [layers, heads, buckets]; the scale times the row is the nearest to it that one
    table of as many rows as heads allows, found by turns. What is the same for all buckets counts
    for nothing in a softmax.
    """
    given = wanted - wanted.mean(-1, keepdims=True)
    layers, heads, _ = given.shape
    # Begun with the layer that asks for most.
    table = given[np.argmax(np.square(given).sum((1, 2)))].copy()
    orders = np.tile(np.arange(heads), (layers, 1))
    for _ in range(_FIT_ROUNDS):
        table /= np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
        for index, rows in enumerate(given):
            orders[index] = _assigned(np.square(rows @ table.T))
        groups = np.stack([rows[order] for rows, order in zip(given, orders, strict=True)], axis=1)
        table = np.stack([np.linalg.svd(group, full_matrices=False)[2][0] for group in groups])
    scales = np.einsum("hlb,hb->lh", groups, table)
    # The largest scale of a row is one: the gate of WavLM is made for numbers like that.
    largest = scales[np.abs(scales).argmax(0), np.arange(heads)]
    return table * largest[:, None], scales / np.where(largest, largest, 1.0), orders


def _assigned(explained: NDArray[np.float32]) -> list[int]:
    """Return which head takes each row, of what each [head, row] explains, the most first."""
    head_of: dict[int, int] = {}
    for place in np.argsort(-explained, axis=None):
        head, row = divmod(int(place), explained.shape[1])
        if row not in head_of and head not in head_of.values():
            head_of[row] = head
    return [head_of[row] for row in range(explained.shape[1])]


def _reorder_heads(attention: Any, order: NDArray[np.int64]) -> None:
    """Put a WavLM attention's heads in another order; what it gives stays the same."""
    heads = attention.num_heads
    for name in ("q_proj", "k_proj", "v_proj"):
        part = getattr(attention, name)
        for values in (part.weight.data, part.bias.data):
            values.copy_(values.unflatten(0, (heads, -1))[order].flatten(0, 1).clone())
    weight = attention.out_proj.weight.data
    weight.copy_(weight.unflatten(1, (heads, -1))[:, order].flatten(1).clone())
