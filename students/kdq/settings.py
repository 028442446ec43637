"""What a KDQ run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from speechquant.core.errors import OptionError
from speechquant.students.kdq.losses import Weights
from speechquant.training.schedule import RunSettings

UNIFORM, APOT, NO_QUANTIZER = "uniform", "apot", "none"
QUANTIZERS = (NO_QUANTIZER, UNIFORM, APOT)


@dataclass(frozen=True)
class Settings(RunSettings):
    """What a run is made of; written beside its checkpoints.

    The learning rate stays where the warm-up brought it. Weights are rounded from step
    `quantize_from` on; until then the distillation losses are gathered that choose the layers. A
    map chosen by the quantization loss is chosen again every `match_every` steps.
    """

    steps: int = 10_000
    warmup_steps: int = 1_000
    decay_steps: int = 1
    peak_learning_rate: float = 3e-5
    weight_decay: float = 0.0
    batch_seconds: float = 60.0
    save_every: int = 100
    score_every: int = 500
    quantize_from: int = 200
    match_every: int = 100
    variants: int = 4
    temperature: float = 1.0
    distillation_weight: float = 0.5
    hidden_weight: float = 1.0
    quantization_weight: float = 1.0

    @property
    def weights(self) -> Weights:
        """Those of the losses."""
        return Weights(self.distillation_weight, self.hidden_weight, self.quantization_weight)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one("variants", "match_every", "quantize_from")
        if self.temperature <= 0:
            raise OptionError(f"--temperature {self.temperature}: give a number above 0")


@dataclass(frozen=True)
class Plan:
    """A row of the paper's Table 2: a matching, a quantizer, and the share of layers it is for."""

    matching: str
    quantizer: str
    share: float

    @property
    def is_quantized(self) -> bool:
        """Whether weights are rounded at all."""
        return self.quantizer != NO_QUANTIZER
