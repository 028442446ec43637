"""What trainings of the zoo's models share: runs that may be killed, logs, the learning rate."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechquant.core.processor import read_processor
from speechquant.zoo.samples import Extra

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LOG_FILE, SETTINGS_FILE = "log.jsonl", "settings.json"
_MOST_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class RunSettings:
    """What every run is made of; written beside its checkpoints."""

    steps: int = 10_000
    warmup_steps: int = 800
    decay_steps: int = 2_000
    peak_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_seconds: float = 42.0
    synthetic_share: float = 0.6
    seed: int = 0
    save_every: int = 250
    score_every: int = 1_000


def learning_rate(step: int, settings: RunSettings) -> float:
    """Return the rate at `step`: linear rise, plateau, linear fall to zero."""
    rise = min(1.0, (step + 1) / settings.warmup_steps)
    fall = min(1.0, max(0.0, (settings.steps - step) / settings.decay_steps))
    return settings.peak_learning_rate * min(rise, fall)


def fast_products() -> AbstractContextManager[Any]:
    """Return what matrix products are taken in: bfloat16 where the processor multiplies it.

    Where it does not, PyTorch's products of bfloat16 are many times slower than those of float32.
    """
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=read_processor().has_bfloat16)


class TrainingRun:
    """Modules and their optimizer in a folder, and how far they are.

    A run is killed and started again at will: it goes on from what `save` wrote last.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        modules: Mapping[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.folder, self._settings = folder, settings
        self.step, self.seconds = 0, 0.0
        self._modules, self._optimizer = modules, optimizer
        self._state_path = folder / "state.pt"
        if self._state_path.exists():
            self._restore()

    def _restore(self) -> None:
        import torch

        state = torch.load(self._state_path, weights_only=True)
        for name, module in self._modules.items():
            module.load_state_dict(state[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("going on from step %d", self.step)

    def save(self) -> None:
        """Write the state a killed run starts from, in one rename."""
        import torch

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
        """Take one step down the gradient of `loss`."""
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self._settings)
        loss.backward()
        parameters = [p for module in self._modules.values() for p in module.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, _MOST_GRADIENT_NORM)
        # One clip in bfloat16 can overflow; a step that is no number would end the run.
        if math.isfinite(float(norm)):
            self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1

    def note(self, **values: Any) -> None:
        """Append a line to the log of the run."""
        row = {"step": self.step, "minutes": round(self.seconds / 60, 1), **values}
        log.info("%s", row)
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def copy_notes(self, checkpoint: Path) -> None:
        """Put the log and the settings beside the weights that they made."""
        for name in (LOG_FILE, SETTINGS_FILE):
            shutil.copyfile(self.folder / name, checkpoint / f"training-{name}")


def train_to_end(
    run: TrainingRun,
    settings: RunSettings,
    take_step: Callable[[], Mapping[str, float]],
    score: Callable[[], Mapping[str, float]],
    write_checkpoint: Callable[[], None],
) -> None:
    """Train to the last step, saving, scoring and writing the checkpoint as the settings say.

    A step gives its losses by name, `score` percents by name.
    """
    losses: list[Mapping[str, float]] = []
    started = time.monotonic()
    while run.step < settings.steps:
        losses.append(take_step())
        if run.step % settings.save_every and run.step != settings.steps:
            continue
        run.seconds += time.monotonic() - started
        started = time.monotonic()
        is_scored = run.step % settings.score_every == 0 or run.step == settings.steps
        scores = score() if is_scored else {}
        means = {name: float(np.mean([row[name] for row in losses])) for name in losses[0]}
        run.note(
            **{name: round(mean, 4) for name, mean in means.items()},
            **{name: round(percent, 2) for name, percent in scores.items()},
        )
        if scores:
            write_checkpoint()
        losses.clear()
        run.save()


def run_parser(doc: str | None, program: str, settings: RunSettings) -> argparse.ArgumentParser:
    """Return a parser of what every training takes, each of its `settings` among it."""
    parser = argparse.ArgumentParser(description=doc, prog=f"python -m {program}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--extra-data",
        type=Extra.parse,
        action="append",
        default=[],
        help="PATH[,share=0.2][,hold_out=8]: a manifest or LibriSpeech folder to train on too",
    )
    parser.add_argument("--threads", type=int, help="threads of torch")
    for key, value in asdict(settings).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    return parser


def begin(options: argparse.Namespace, settings: RunSettings, **facts: Any) -> None:
    """Make the folder of a run and write down in it what the run is made of."""
    import torch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    used = {
        **asdict(settings),
        "extra_data": [
            # The folder's name alone: where it lies is nobody else's business.
            {**asdict(extra), "source": extra.source.name}
            for extra in options.extra_data
        ],
        **facts,
    }
    text = json.dumps(used, indent=1) + "\n"
    (options.out / SETTINGS_FILE).write_text(text, encoding="utf-8")
