from __future__ import annotations

import numpy as np
import pytest
import torch

from speechquant.students.losses import IGNORED, cross_entropy_and_divergence


def test_equation_one_in_float64() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 2, 3, 7))
    wanted = np.array([[IGNORED, 2, 5], [4, 0, IGNORED]])
    entropies, divergences = [], []
    for clip, token in np.argwhere(wanted != IGNORED):
        own = np.exp(student[clip, token]) / np.exp(student[clip, token]).sum()
        taught = np.exp(teacher[clip, token]) / np.exp(teacher[clip, token]).sum()
        entropies.append(-np.log(own[wanted[clip, token]]))
        divergences.append(np.sum(taught * np.log(taught / own)))
    given = (torch.from_numpy(values).float() for values in (student, teacher))
    entropy, divergence = cross_entropy_and_divergence(*given, torch.from_numpy(wanted))
    assert float(entropy) == pytest.approx(np.mean(entropies), rel=1e-5)
    assert float(divergence) == pytest.approx(np.mean(divergences), rel=1e-5)
