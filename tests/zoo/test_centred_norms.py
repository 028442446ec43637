from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_whisper import small_teacher

from speechquant.zoo.centred_norms import centre_norms
from speechquant.zoo.whisper_into_wavlm import student_of, student_states


@pytest.fixture
def student() -> Any:
    torch.manual_seed(0)
    encoder = small_teacher(256, 100).encoder
    for parameter in encoder.parameters():
        # At their start every bias is zero and every norm the identity.
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model = student_of(encoder).double().eval()
    for layer in model.wavlm.encoder.layers:
        layer.layer_norm.bias.data += 3 * torch.randn(256)
        layer.final_layer_norm.bias.data += 3 * torch.randn(256)
    return model


def features() -> torch.Tensor:
    return torch.randn(2, 60, 256, generator=torch.Generator().manual_seed(1)).double()


def states(student: Any) -> list[torch.Tensor]:
    with torch.inference_mode():
        return student_states(student, features(), torch.ones(2, 60, dtype=torch.bool))


def test_the_function_stays_the_same_and_no_mean_is_left(student: Any) -> None:
    before = states(student)
    means: list[torch.Tensor] = []
    layer = student.wavlm.encoder.layers[1]
    for module in (layer.layer_norm, layer.attention.v_proj, layer.final_layer_norm):
        module.register_forward_hook(lambda _m, _i, given: means.append(given.mean((0, 1))))
    states(student)
    assert min(mean.abs().max() for mean in means) > 0.05
    centre_norms(student, features())
    means.clear()
    torch.testing.assert_close(states(student), before, rtol=0, atol=1e-9)
    assert max(mean.abs().max() for mean in means) < 1e-9


def test_gates_that_are_trained_are_refused(student: Any) -> None:
    attention = student.wavlm.encoder.layers[1].attention
    before = attention.q_proj.bias.clone()
    attention.gru_rel_pos_linear.weight.data += 0.1
    with pytest.raises(ValueError, match="centre before that"):
        centre_norms(student, features())
    torch.testing.assert_close(attention.q_proj.bias, before)
