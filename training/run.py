"""A training that may be killed at any step: its state, its log and its checkpoints."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechquant.core.errors import OptionError
from speechquant.core.processor import read_processor
from speechquant.training.processes import ALONE, Processes
from speechquant.training.schedule import RunSettings, learning_rate

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LOG_FILE, SETTINGS_FILE = "log.jsonl", "settings.json"
_MOST_GRADIENT_NORM = 1.0


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Return whether matrix products are taken in bfloat16: where the processor multiplies it.

    Where it does not, PyTorch's products of bfloat16 are many times slower than those of float32.
    """
    return device != "cpu" or read_processor().has_bfloat16


def fast_products(device: str = "cpu") -> AbstractContextManager[Any]:
    """Return what matrix products are taken in."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=multiplies_bfloat16(device))


class TrainingRun:
    """Modules and their optimizer in a folder, and how far they are.

    A run is killed and started again at will: it goes on from what `save` wrote last. `processes`
    are all that train it together, each on its own batches; the first alone writes.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        modules: Mapping[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer,
        processes: Processes = ALONE,
    ) -> None:
        self.folder, self._settings, self.processes = folder, settings, processes
        self.step, self.seconds = 0, 0.0
        self._modules, self._optimizer = modules, optimizer
        self._state_path = folder / "state.pt"
        if self._state_path.exists():
            self._restore()
        self._begin_as_the_first()

    def _begin_as_the_first(self) -> None:
        import torch

        steps = self.processes.together([self.step], self.processes.count)
        if len(set(steps)) > 1:
            raise OptionError(
                f"{self.folder}: the processes find runs of {sorted(set(steps))} steps there; "
                "give an --out that all machines share"
            )
        for module in self._modules.values():
            self.processes.take_from_first(module.state_dict().values())
        if not self.processes.is_first:
            # Or all would drop the same out.
            torch.manual_seed(self._settings.seed + self.processes.rank)

    def _restore(self) -> None:
        import torch

        state = torch.load(self._state_path, map_location="cpu", weights_only=True)
        for name, module in self._modules.items():
            module.load_state_dict(state[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("going on from step %d", self.step)

    def save(self) -> None:
        """Write the state a killed run starts from, in one rename."""
        import torch

        if not self.processes.is_first:
            return
        state = {
            **{name: module.state_dict() for name, module in self._modules.items()},
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self._state_path.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self._state_path)

    def descend(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of `loss`, which is the mean over all processes."""
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = group.get("share", 1.0) * learning_rate(self.step, self._settings)
        loss.backward()
        parameters = [p for module in self._modules.values() for p in module.parameters()]
        self.processes.average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, _MOST_GRADIENT_NORM)
        # One clip in bfloat16 can overflow; a step that is no number would end the run.
        if math.isfinite(float(norm)):
            self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1

    def note(self, **values: Any) -> None:
        """Append a line to the log of the run."""
        if not self.processes.is_first:
            return
        row = {"step": self.step, "minutes": round(self.seconds / 60, 1), **values}
        log.info("%s", row)
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def is_best(self) -> bool:
        """Whether no earlier scores of the log have a lower mean word error rate than the last."""
        lines = (self.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        rates = [rate for line in lines if (rate := _mean_rate(json.loads(line))) is not None]
        return bool(rates) and rates[-1] == min(rates)

    def copy_notes(self, checkpoint: Path) -> None:
        """Put the log and the settings beside the weights that they made."""
        for name in (LOG_FILE, SETTINGS_FILE):
            shutil.copyfile(self.folder / name, checkpoint / f"training-{name}")


def _mean_rate(row: Mapping[str, Any]) -> float | None:
    rates = [value for name, value in row.items() if name.startswith("wer_")]
    return float(np.mean(rates)) if rates else None


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def train_to_end(
    run: TrainingRun,
    settings: RunSettings,
    take_step: Callable[[], Mapping[str, float]],
    score: Callable[[], Mapping[str, float]],
    write_checkpoint: Callable[[], None],
) -> None:
    """Train to the last step, saving, scoring and writing the checkpoint as the settings say.

    A step gives its losses by name, `score` percents by name. Every process scores, the first
    alone writes.
    """
    losses: list[Mapping[str, float]] = []
    started = time.monotonic()
    while run.step < settings.steps:
        losses.append(take_step())
        is_last = run.step == settings.steps
        is_scored = is_last or run.step % settings.score_every == 0
        if not is_scored and run.step % settings.save_every:
            continue
        run.seconds += time.monotonic() - started
        started = time.monotonic()
        scores = score() if is_scored else {}
        means = _means(run.processes.together([_means(losses)], run.processes.count))
        run.note(
            **{name: round(mean, 4) for name, mean in means.items()},
            **{name: round(percent, 2) for name, percent in scores.items()},
        )
        if scores and run.processes.is_first:
            write_checkpoint()
        losses.clear()
        run.save()
