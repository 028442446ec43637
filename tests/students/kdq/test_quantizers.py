"""The levels of a quantizer, the nearest of them, and the gradient through rounding."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from speechquant.students.kdq.quantizers import (
    Quantizer,
    RoundedWeight,
    apot_magnitudes,
    uniform_magnitudes,
)
from speechquant.students.kdq.settings import APOT, UNIFORM


def equation_9(base_bits: int, terms: int) -> set[float]:
    """Every sum of one p_i for each i, as the paper writes the sets."""
    sets = [
        [0.0, *(2.0 ** -(i + j * terms) for j in range(2**base_bits - 1))] for i in range(terms)
    ]
    return {sum(parts) for parts in product(*sets)}


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_sums_of_powers_of_two_are_those_of_the_definition(terms: int) -> None:
    expected = equation_9(2, terms)
    found = apot_magnitudes(2 * terms + 1)
    assert len(found) == 4**terms
    assert found / found[-1] == pytest.approx(sorted(each / max(expected) for each in expected))


def test_an_odd_number_of_bits_is_as_the_authors_of_apot_have_it() -> None:
    """build_power_value of their code for 3 and 5 bits of magnitude."""
    three = {a + b for a in (0, 2**-1, 2**-2, 2**-4) for b in (0, 2**-3)}
    two_terms = product((0, 2**-1, 2**-3, 2**-6), (0, 2**-2, 2**-4, 2**-7), (0, 2**-5))
    five = {sum(parts) for parts in two_terms}
    assert (apot_magnitudes(4) / 2**4).tolist() == sorted(three)
    assert (apot_magnitudes(6) / 2**7).tolist() == sorted(five)


def test_eight_bits_have_128_magnitudes() -> None:
    apot, uniform = apot_magnitudes(8), uniform_magnitudes(8)
    assert len(set(apot.tolist())) == len(uniform) == 128
    assert (uniform[0], uniform[-1]) == (0, 127)
    assert apot[:5].tolist() == [0, 1, 2, 3, 4]
    assert apot[-1] == 2**9 + 2**8 + 2**7 + 2**3


@pytest.mark.parametrize("kind", [UNIFORM, APOT])
def test_each_weight_takes_its_nearest_level(kind: str) -> None:
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    rounded = Quantizer(kind).rounded(weight)
    assert rounded.codes.dtype == torch.uint8
    levels = (rounded.levels * rounded.scale).numpy()
    assert len(levels) == 255 and (levels == -levels[::-1]).all()
    nearest = np.abs(weight.numpy()[..., None] - levels).min(axis=-1)
    assert (weight - rounded.values).abs().numpy() == pytest.approx(nearest, abs=1e-7)
    assert rounded.values.abs().max() == pytest.approx(weight.abs().max().item())


def test_uniform_levels_are_steps_of_the_scale() -> None:
    weight = torch.tensor([[12.7, -3.04], [0.06, 0.0]])
    rounded = Quantizer(UNIFORM).rounded(weight)
    assert rounded.scale.item() == pytest.approx(0.1)
    assert rounded.levels[rounded.codes.int()].tolist() == [[127.0, -30.0], [1.0, 0.0]]


def test_a_weight_of_zeros() -> None:
    rounded = Quantizer(APOT).rounded(torch.zeros(2, 3))
    assert rounded.scale == 1 and not rounded.values.any()


@pytest.mark.parametrize("kind", [UNIFORM, APOT])
def test_gradients_pass_straight_through_once_it_is_on(kind: str) -> None:
    layer = nn.Linear(3, 2, bias=False)
    plain = layer.weight.detach().clone()
    rounding = RoundedWeight(Quantizer(kind))
    parametrize.register_parametrization(layer, "weight", rounding)
    assert torch.equal(layer.weight, plain)
    rounding.is_on.fill_(True)
    assert torch.equal(layer.weight, Quantizer(kind).rounded(plain).values)
    given = torch.tensor([[1.0, 2.0, 3.0]])
    layer(given).sum().backward()
    latent = layer.parametrizations.weight.original  # type: ignore[union-attr]
    assert torch.equal(latent.grad, given.expand(2, 3))
