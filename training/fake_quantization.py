"""Fake quantization of a torch model: its products round weights and inputs as integers would.

Gradients pass rounding straight through. An input's scale is learned (Esser et al. 2020, "Learned
Step Size Quantization"), from the one that a scale table has for it; a weight's scale of each
output channel always is its largest magnitude over Q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from speechquant.core.errors import ScaleError
from speechquant.core.scales import ScaleTable, largest_level

_WEIGHTED = (nn.Linear, nn.Conv1d)


def round_through(values: Tensor) -> Tensor:
    """Return the nearest whole numbers; the gradient passes as if nothing had been done."""
    return values + (values.round() - values).detach()


def fake_quantized(values: Tensor, scale: Tensor, highest: int) -> Tensor:
    """Return `values` as the levels -highest..highest times `scale` stand for them."""
    return round_through((values / scale).clamp(-highest, highest)) * scale


class LearnedStep(nn.Module):
    """Rounds an activation; the gradient of its scale is that of Esser et al.

    Its logarithm is the parameter, so that a step of the optimizer is a share of any scale.
    """

    def __init__(self, scale: float, bits: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.highest = largest_level(bits)

    @property
    def scale(self) -> Tensor:
        """The scale."""
        return self.log_scale.exp()

    def forward(self, values: Tensor) -> Tensor:
        """Return the rounded activation."""
        share = (values[0].numel() * self.highest) ** -0.5
        scale = self.scale * share + (self.scale * (1 - share)).detach()
        return fake_quantized(values, scale, self.highest)


class RoundedWeight(nn.Module):
    """Rounds a weight [outputs, ...] with a scale for each output channel."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.highest = largest_level(bits)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        largest = weight.detach().abs().flatten(1).amax(dim=1)
        scales = torch.where(largest > 0, largest / self.highest, torch.ones_like(largest))
        return fake_quantized(weight, scales.view(-1, *[1] * (weight.dim() - 1)), self.highest)


class FakeQuantization:
    """A model whose products with weights are rounded as `table` says, until `remove`.

    `name_of` gives the name of a module in the table, whose rows are called NAME.input. Modules
    that read one activation share its row, which bears the name of the first: `show` runs the model
    on any audio, so that these are seen. Raises ScaleError for a row without a module, and for a
    table whose rounding is not learned here: asymmetric, one scale for a whole weight, or weights
    alone.
    """

    def __init__(
        self,
        model: nn.Module,
        table: ScaleTable,
        name_of: Callable[[str], str],
        show: Callable[[], object],
    ) -> None:
        if not table.symmetric or table.has_shared_weight_scales or table.float_activations:
            raise ScaleError(
                "the table is asymmetric, has one scale for a whole weight, or quantizes weights "
                "alone, which is not trained; calibrate without these options"
            )
        self._table = table
        self._modules = {
            name_of(name): module
            for name, module in model.named_modules()
            if isinstance(module, _WEIGHTED)
        }
        readers = _readers(self._modules, show)
        rows = {_row_of(names, table): names for names in readers}
        missing = table.tensors.keys() - rows.keys()
        if missing:
            raise ScaleError(
                f"no module of the model reads {min(missing)}; give the table of this model"
            )
        self.steps = nn.ModuleDict()
        self._keys: dict[str, str] = {}
        self._hooks: list[Any] = []
        self._rounded: list[nn.Module] = []
        for row, names in rows.items():
            if row is not None:
                self._round(row, names)

    def _round(self, row: str, names: tuple[str, ...]) -> None:
        bits = self._table.bits
        step = LearnedStep(self._table.tensors[row].scale, bits.activations)
        self._keys[row] = row.replace(".", "/")  # no key of a ModuleDict has dots
        self.steps[self._keys[row]] = step
        for name in names:
            module = self._modules[name]
            if parametrize.is_parametrized(module, "weight"):  # weight norm, which is folded
                parametrize.remove_parametrizations(module, "weight")
            parametrize.register_parametrization(module, "weight", RoundedWeight(bits.weights))
            self._rounded.append(module)
            self._hooks.append(module.register_forward_pre_hook(_rounding(step)))

    @property
    def table(self) -> ScaleTable:
        """The table with the scales as they are now."""
        highest = largest_level(self._table.bits.activations)
        scales = {
            row: float(self.steps[key].scale.detach())  # type: ignore[operator]
            for row, key in self._keys.items()
        }
        rows = {
            name: replace(row, scale=scales[name], amax=scales[name] * highest)
            for name, row in self._table.tensors.items()
        }
        return replace(self._table, tensors=rows)

    def remove(self) -> None:
        """Leave the model with float weights, as trained, and nothing that rounds."""
        for hook in self._hooks:
            hook.remove()
        for module in self._rounded:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _rounding(step: LearnedStep) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _module, inputs: (step(inputs[0]), *inputs[1:])


def _readers(modules: Mapping[str, nn.Module], show: Callable[[], object]) -> list[tuple[str, ...]]:
    """Return the names of the modules by the tensor that they read, in the order of the model."""
    seen: list[tuple[Tensor, list[str]]] = []

    def note(name: str, given: Tensor) -> None:
        for tensor, names in seen:
            if tensor is given:
                names.append(name)
                return
        seen.append((given, [name]))

    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: note(name, inputs[0]))
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            show()
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(names) for _, names in seen]


def _row_of(names: tuple[str, ...], table: ScaleTable) -> str | None:
    """Return the row of modules that read one activation, None where it stays in float."""
    rows = [f"{name}.input" for name in names]
    return next((row for row in rows if row in table.tensors), None)
