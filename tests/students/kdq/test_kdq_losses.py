"""The losses of Whisper-KDQ against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from speechquant.students.kdq.losses import (
    Weights,
    hidden_costs,
    layers_to_quantize,
    matched,
    prediction_loss,
    quantization_loss,
    whole_loss,
)


def test_the_divergence_of_logits_at_a_temperature() -> None:
    """At temperature 2 the teacher says 3/4 and 1/4 where the student says one half twice."""
    teacher = tensor([[2 * math.log(3.0), 0.0], [1.0, 1.0]])
    student = tensor([[7.0, 7.0], [-2.0, -2.0]])
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert prediction_loss(teacher, student, 2.0).item() == pytest.approx(first / 2)
    assert prediction_loss(teacher, teacher, 1.0).item() == pytest.approx(0.0, abs=1e-7)


def test_the_costs_of_hidden_states_and_their_map() -> None:
    student = [tensor([[1.0, 2.0]]), tensor([[0.0, 0.0]])]
    transformed = [tensor([[1.0, 0.0]]), tensor([[3.0, 2.0]]), tensor([[0.0, 1.0]])]
    costs = hidden_costs(student, transformed)
    assert costs.tolist() == [[2.0, 2.0, 1.0], [0.5, 6.5, 0.5]]
    assert matched(costs, [1, 2]).tolist() == [2.0, 0.5]


def test_the_quantization_loss_is_a_mean_and_draws_weights_to_their_levels() -> None:
    weights = [tensor([[1.1, -0.4]], requires_grad=True), tensor([2.0], requires_grad=True)]
    rounded = [tensor([[1.0, 0.0]], requires_grad=True), tensor([2.0], requires_grad=True)]
    loss = quantization_loss(weights, rounded)
    assert loss.item() == pytest.approx((0.1 + 0.4) / 3)
    loss.backward()
    first = weights[0].grad
    assert first is not None
    assert torch.allclose(first, tensor([[1 / 3, -1 / 3]]))
    assert rounded[0].grad is None


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, [1, 3]), (1.0, [0, 1, 2, 3]), (0.3, [1, 3]), (0.1, [3])]
)
def test_the_layers_that_are_distilled_best_are_quantized(
    share: float, expected: list[int]
) -> None:
    assert layers_to_quantize([4.0, 2.0, 3.0, 1.0], share) == expected


def test_the_whole_loss() -> None:
    found = whole_loss(tensor(3.0), tensor(0.25), tensor(5.0), Weights())
    assert found.item() == 0.5 * 3.0 + 1.0 * 0.25 + 0.5 * 5.0
