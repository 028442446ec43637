"""What positions do in a Whisper, and a WavLM that is told of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_whisper import small_teacher

from speechquant.zoo.whisper_into_wavlm import (
    PLACE,
    student_of,
    student_states,
    teacher_states,
    unexplained,
)
from speechquant.zoo.whisper_places import _reorder_heads, place_means, shared_table, tell_distances

FRAMES, WIDTH = 240, 64


@pytest.fixture(scope="module")
def teacher() -> Any:
    torch.manual_seed(0)
    encoder = small_teacher(WIDTH, FRAMES).encoder.eval().requires_grad_(False)
    for layer in encoder.layers:
        # Heads that look for a key like the query, as those of a trained one do at their place.
        layer.self_attn.q_proj.weight.copy_(1.5 * torch.eye(WIDTH))
        layer.self_attn.k_proj.weight.copy_(1.5 * torch.eye(WIDTH))
        layer.self_attn.v_proj.weight.copy_(torch.eye(WIDTH))
        layer.self_attn.out_proj.weight.copy_(torch.eye(WIDTH))
    return encoder


def stems(count: int, seed: int, teacher: Any) -> torch.Tensor:
    noise = torch.randn(count, FRAMES, WIDTH, generator=torch.Generator().manual_seed(seed))
    return 0.3 * noise + teacher.embed_positions.weight[PLACE]


def heard(count: int) -> torch.Tensor:
    return torch.ones(count, FRAMES, dtype=torch.bool)


def test_at_one_place_every_frame_has_the_same_mean(teacher: Any) -> None:
    given = stems(6, 1, teacher)
    means = place_means(teacher, given)
    states = teacher_states(teacher, given, heard(6))
    assert len(means.rows) == len(states) == 3
    for state, row, moved in zip(states, means.rows, means.at_one_place(states), strict=True):
        assert row.std(0).max() > 0.01  # places differ
        torch.testing.assert_close(moved.mean(0), row[PLACE].expand(FRAMES, -1), atol=1e-4, rtol=0)
        # What a frame says beyond its place is kept.
        torch.testing.assert_close(moved - moved.mean(0), state - state.mean(0), atol=1e-4, rtol=0)
    short = [state[:, :50] for state in states]
    assert [state.shape[1] for state in means.at_one_place(short)] == [50] * 3


def test_a_table_that_layers_can_share_is_found() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((4, 30))
    scales = np.array([[1.0, 1.0, 1.0, 1.0], [0.5, -0.3, 0.8, 0.2]])
    orders = np.array([[0, 1, 2, 3], [2, 0, 3, 1]])  # which head takes which row
    wanted = np.empty((2, 4, 30), np.float32)
    for layer in range(2):
        wanted[layer, orders[layer]] = scales[layer][:, None] * table
    found, found_scales, found_orders = shared_table(wanted + rng.standard_normal((2, 4, 1)))
    for layer in range(2):
        given = wanted[layer][found_orders[layer]]
        told = found_scales[layer][:, None] * found
        np.testing.assert_allclose(told, given - given.mean(-1, keepdims=True), atol=1e-4)
    assert np.abs(found_scales).max(0) == pytest.approx(np.ones(4))


def test_heads_that_look_nowhere_get_zeros() -> None:
    table, scales, orders = shared_table(np.zeros((2, 3, 8), np.float32))
    assert not table.any() and np.isfinite(scales).all()
    assert [sorted(order) for order in orders.tolist()] == [[0, 1, 2]] * 2


def test_told_distances_bring_the_student_nearer(teacher: Any) -> None:
    torch.manual_seed(1)
    student = student_of(teacher).eval()
    known, new = stems(4, 2, teacher), stems(3, 3, teacher)
    targets = place_means(teacher, known).at_one_place(teacher_states(teacher, new, heard(3)))

    def error() -> float:
        states = student_states(student, new, heard(3))
        centred = [[state - state.mean((0, 1)) for state in rows] for rows in (states, targets)]
        return float(unexplained(*centred, heard(3)).mean())

    with torch.inference_mode():
        before = error()
    tell_distances(teacher, student, known)
    with torch.inference_mode():
        after = error()
    assert after < 0.8 * before


def test_heads_in_another_order_give_the_same(teacher: Any) -> None:
    student = student_of(teacher).eval()
    given = stems(1, 4, teacher)
    with torch.inference_mode():
        expected = student_states(student, given, heard(1))[-1]
        weight = student.wavlm.encoder.layers[1].attention.q_proj.weight.clone()
        _reorder_heads(student.wavlm.encoder.layers[1].attention, np.array([2, 0, 3, 1]))
        assert not torch.equal(student.wavlm.encoder.layers[1].attention.q_proj.weight, weight)
        found = student_states(student, given, heard(1))[-1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
