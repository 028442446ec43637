"""Small stand-ins that several tests share."""

from __future__ import annotations

from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.scoring import Trial


def model_trial(scale: float) -> Trial:
    """A trial of one tensor."""
    table = ScaleTable("model", "max", Bits(), {"x": Scale("conv.0", scale, 127 * scale)})
    return Trial(table, quantizes_weights=True, label=f"scale {scale}")
