"""How long a training runs, and its learning rate at every step."""

from __future__ import annotations

from dataclasses import dataclass

from speechquant.core.errors import OptionError


@dataclass(frozen=True)
class RunSettings:
    """What every run is made of; written beside its checkpoints."""

    steps: int = 10_000
    warmup_steps: int = 800
    decay_steps: int = 2_000
    peak_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_seconds: float = 42.0
    seed: int = 0
    save_every: int = 250
    score_every: int = 1_000

    def __post_init__(self) -> None:
        """Raise OptionError for numbers that no run can have."""
        self.require_one("warmup_steps", "decay_steps", "save_every", "score_every")

    def require_one(self, *names: str) -> None:
        """Raise OptionError where one of these settings is below 1."""
        for name in names:
            if (value := getattr(self, name)) < 1:
                raise OptionError(f"--{name.replace('_', '-')} {value}: too low; give 1 or more")


def learning_rate(step: int, settings: RunSettings) -> float:
    """Return the rate at `step`: linear rise, plateau, linear fall to zero."""
    rise = min(1.0, (step + 1) / settings.warmup_steps)
    fall = min(1.0, max(0.0, (settings.steps - step) / settings.decay_steps))
    return settings.peak_learning_rate * min(rise, fall)
