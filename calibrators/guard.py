"""A budget for the word errors that quantization may add, kept by leaving layers in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from speechquant.calibrators.stablequant import total_errors
from speechquant.core.progress import OnStep
from speechquant.core.scales import ScaleTable
from speechquant.core.scoring import Job, Scorer, Trial


@dataclass(frozen=True)
class LayerRelief:
    """What leaving one layer in float gives back, and the bytes it costs."""

    layer: str
    errors_saved: int
    extra_bytes: int

    @property
    def errors_per_megabyte(self) -> float:
        """By which layers are left in float: the cheapest relief first."""
        return self.errors_saved / max(self.extra_bytes / 1e6, 1e-6)


@dataclass(frozen=True)
class GuardResult:
    """The table that keeps the budget and how it came about."""

    table: ScaleTable
    reliefs: tuple[LayerRelief, ...]
    float_layers: tuple[str, ...]
    errors_before: int
    errors_after: int


def leave_in_float(table: ScaleTable, layers: tuple[str, ...]) -> ScaleTable:
    """Return the table without `layers`."""
    left = {name: row for name, row in table.tensors.items() if row.layer not in layers}
    return replace(table, tensors=left, float_layers=(*table.float_layers, *layers))


def keep_budget(
    table: ScaleTable,
    scorer: Scorer,
    utterances: int,
    allowed: float,
    extra_bytes: Mapping[str, int],
    on_step: OnStep | None = None,
) -> GuardResult:
    """Return `table` with as many layers in float as it takes to make `allowed` errors at most.

    Every layer is left in float alone, to see what it gives back; then they are added up, most
    errors saved per megabyte first, and those that prove needless are taken back, the costliest
    first. `extra_bytes` is what each layer's float weights cost.
    """

    def errors_of(tried: ScaleTable, label: str) -> int:
        trial = Trial(tried, quantizes_weights=True, label=label)
        return total_errors(list(scorer.score([Job(trial, i) for i in range(utterances)])))

    before = errors_of(table, "all layers, final table")
    layers = tuple(dict.fromkeys(row.layer for row in table.tensors.values()))
    reliefs = []
    for done, layer in enumerate(layers, start=1):
        saved = before - errors_of(leave_in_float(table, (layer,)), f"all but {layer}")
        reliefs.append(LayerRelief(layer, saved, extra_bytes[layer]))
        if on_step is not None:
            on_step(done, len(layers))
    # Layers that save nothing alone come last, in case the rest is not enough.
    order = sorted(
        reliefs, key=lambda relief: (relief.errors_saved <= 0, -relief.errors_per_megabyte)
    )

    def errors_without(float_layers: tuple[str, ...]) -> int:
        return errors_of(leave_in_float(table, float_layers), f"all but {', '.join(float_layers)}")

    chosen, after = _enough([relief.layer for relief in order], errors_without, before, allowed)
    by_cost = sorted(chosen, key=lambda layer: -extra_bytes[layer])
    for layer in by_cost:
        fewer = tuple(kept for kept in chosen if kept != layer)
        left = errors_without(fewer) if fewer else before
        if left <= allowed:
            chosen, after = fewer, left
    return GuardResult(leave_in_float(table, chosen), tuple(order), chosen, before, after)


def _enough(
    order: Sequence[str],
    errors_without: Callable[[tuple[str, ...]], int],
    before: int,
    allowed: float,
) -> tuple[tuple[str, ...], int]:
    """Return layers that keep the budget together, and the errors left; all where none suffice."""
    chosen: tuple[str, ...] = ()
    after = before
    # First only those that help beside the ones before; then, if that is not enough, any.
    for must_help in (True, False):
        for layer in order:
            if after <= allowed:
                return chosen, after
            if layer in chosen:
                continue
            left = errors_without((*chosen, layer))
            if left < after or not must_help:
                chosen, after = (*chosen, layer), left
    return chosen, after
