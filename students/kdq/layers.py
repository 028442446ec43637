"""The decoder's layers: their states, the weights that are rounded, and costs between layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from speechquant.students.kdq.losses import quantization_loss
from speechquant.students.kdq.quantizers import Quantizer, Rounded, RoundedWeight

# W_Q, W_K, W_V, W_O of both attentions, W_1 and W_2, by the side that has the hidden states.
_READ_STATES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "encoder_attn.q_proj", "fc1"
)  # fmt: skip
_WRITE_STATES = ("self_attn.out_proj", "encoder_attn.out_proj", "fc2")
_READ_AUDIO = ("encoder_attn.k_proj", "encoder_attn.v_proj")
NAMES = (*_READ_STATES, *_WRITE_STATES, *_READ_AUDIO)


def layers_of(model: Any) -> list[nn.Module]:
    """Return the layers of a Whisper's decoder."""
    return list(model.model.decoder.layers)


def decoded(model: Any, hidden: Tensor, given: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits after each given token and what each layer of the decoder gave."""
    states: list[Tensor] = []

    def note(_layer: nn.Module, _inputs: object, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(note) for layer in layers_of(model)]
    try:
        last = model.model.decoder(
            input_ids=given, encoder_hidden_states=hidden, use_cache=False
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return model.proj_out(last), states


def attach_rounding(layer: nn.Module, quantizer: Quantizer) -> None:
    """Let a layer's weights be rounded once `round_layer` has been called."""
    for name in NAMES:
        parametrize.register_parametrization(
            layer.get_submodule(name), "weight", RoundedWeight(quantizer)
        )


def round_layer(layer: nn.Module) -> None:
    """Round a layer's weights from now on."""
    for module in layer.modules():
        if isinstance(module, RoundedWeight):
            module.is_on.fill_(True)


def is_rounded(layer: nn.Module) -> bool:
    """Whether a layer's weights are rounded."""
    return any(bool(m.is_on) for m in layer.modules() if isinstance(m, RoundedWeight))


def latent_weights(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's weights before rounding."""
    modules: Mapping[str, Any] = {name: layer.get_submodule(name) for name in NAMES}
    return {
        name: module.parametrizations.weight.original
        if parametrize.is_parametrized(module, "weight")
        else module.weight
        for name, module in modules.items()
    }


def rounded_weights(layer: nn.Module, quantizer: Quantizer) -> dict[str, Rounded]:
    """Return a layer's weights as levels, whether it is rounded already or not."""
    return {name: quantizer.rounded(weight) for name, weight in latent_weights(layer).items()}


def loss_of_rounding(layers: Sequence[nn.Module], quantizer: Quantizer) -> Tensor:
    """Return the mean of the layers' quantization losses."""
    losses = [
        quantization_loss(
            list(latent_weights(layer).values()),
            [rounded.values for rounded in rounded_weights(layer, quantizer).values()],
        )
        for layer in layers
    ]
    return torch.stack(losses).mean()


def transformed(name: str, weight: Tensor, transform: Tensor) -> Tensor:
    """Return W_A W for a weight [outputs, inputs] of the teacher.

    W_A maps hidden states, so it acts on the side of the weight that has them: the inputs of most,
    the outputs of W_O and W_2, none of what reads the encoder.
    """
    if name in _READ_STATES:
        return weight @ transform.T
    return transform @ weight if name in _WRITE_STATES else weight


@torch.no_grad()
def weight_costs(student: Any, teacher: Any, transform: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the mean of |W_A W_T - Q_S| between layers, [student, teacher]: equation 12."""
    others = [
        [transformed(name, weight, transform) for name, weight in latent_weights(layer).items()]
        for layer in layers_of(teacher)
    ]
    rows = []
    for layer in layers_of(student):
        own = [rounded.values for rounded in rounded_weights(layer, quantizer).values()]
        rows.append(torch.stack([quantization_loss(other, own) for other in others]))
    return torch.stack(rows)
