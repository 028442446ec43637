"""Quantization-aware training of a CTC model of the zoo.

`python -m speechquant.zoo.train_quantized hubert --scales scales.json --out runs/hubert-w8a8`.
The CTC model goes on training with its weights and activations rounded, from the scales of a table
that `speechquant calibrate` made for it; the activations' scales are learned too. The run's folder
gets `checkpoint`, in float, `bundle`, which is exported from it, and `scales.json`, the table to
quantize the bundle with. torchrun runs it in several processes.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.scales import SCALES_FILE, ScaleTable, read_scales, write_scales
from speechquant.exporter.ctc import export
from speechquant.training.command_line import (
    begin,
    run_parser,
    settings_of,
    train_in_processes,
)
from speechquant.training.processes import ALONE, Processes
from speechquant.training.samples import SAMPLE_RATE_HZ, Sample, Sets
from speechquant.training.schedule import RunSettings
from speechquant.zoo.models import CTC_MODELS, save_model, trained_model
from speechquant.zoo.train import CtcRun, keep_layout_through_norms
from speechquant.zoo.train import train as train_ctc
from speechquant.zoo.training_sets import training_sets

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Settings(RunSettings):
    """What a run is made of; written beside its checkpoints."""

    steps: int = 1_000
    warmup_steps: int = 50
    decay_steps: int = 500
    peak_learning_rate: float = 2e-5
    score_every: int = 500
    synthetic_share: float = 0.6


class QuantizedRun(CtcRun):
    """A run of a CTC model of the zoo whose products are rounded."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        folder: Path,
        settings: Settings,
        table: ScaleTable,
        processes: Processes = ALONE,
    ) -> None:
        import torch

        from speechquant.training.fake_quantization import FakeQuantization

        torch.manual_seed(settings.seed)
        self.name, self.model, self.settings = name, model, settings
        keep_layout_through_norms(model)
        wave = torch.zeros(1, SAMPLE_RATE_HZ)
        self._rounding = FakeQuantization(model.eval(), table, _name_in_table, lambda: model(wave))
        steps = self._rounding.steps
        groups: list[dict[str, Any]] = [
            {"params": list(model.parameters())},
            {"params": list(steps.parameters()), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        modules = {"model": model, "steps": steps}
        super().__init__(folder, settings, modules, optimizer, processes)

    def finish(self) -> None:
        """Write the checkpoint, its bundle and the table; the model is a plain one from then on."""
        table = self._rounding.table
        self._rounding.remove()
        _norm_positions(self.model)
        folder = self.folder / "checkpoint"
        save_model(self.name, self.model, folder, as_float16=False)
        self.copy_notes(folder)
        bundle = export(folder, self.folder / "bundle", force=True, name=self.name)
        table = replace(table, model_sha256=bundle.model_sha256)
        write_scales(table, self.folder / SCALES_FILE, force=True)


def _name_in_table(module: str) -> str:
    """Return what the exporter calls a module of the model."""
    return "head" if module == "lm_head" else module.split(".", 1)[1]


def _norm_positions(model: PreTrainedModel) -> None:
    """Give the positional convolution the weight norm that a checkpoint of it has."""
    from torch.nn.utils.parametrizations import weight_norm
    from torch.nn.utils.parametrize import is_parametrized

    base: Any = model.base_model
    convolution = base.encoder.pos_conv_embed.conv
    if not is_parametrized(convolution, "weight"):  # in float it keeps its norm all along
        weight_norm(convolution, "weight", dim=2)


def load_for_training(checkpoint: Path) -> PreTrainedModel:
    """Return a model of the zoo in float32."""
    import torch
    from transformers import AutoModelForCTC

    model: PreTrainedModel = AutoModelForCTC.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return model


def train(run: QuantizedRun, sets: Sets, scored: dict[str, list[Sample]]) -> None:
    """Train to the end of the settings, and write the model and its table then."""
    train_ctc(run, sets, scored)
    if run.processes.is_first:
        run.finish()


def _run(options: argparse.Namespace, processes: Processes) -> None:
    settings = settings_of(options, Settings())
    table = read_scales(options.scales)
    start = options.start or trained_model(options.model)
    facts = {"start": start.name, "table": table.key, "width": table.bits.name}
    begin(options, settings, processes, **facts)
    sets, scored = training_sets(
        options.extra_data, settings.synthetic_share, random.Random(settings.seed)
    )
    model = load_for_training(start)
    run = QuantizedRun(options.model, model, options.out, settings, table, processes)
    train(run, sets, scored)


def main() -> None:
    """Run the command line."""
    parser = run_parser(__doc__, "speechquant.zoo.train_quantized", Settings())
    parser.add_argument("model", choices=CTC_MODELS)
    parser.add_argument("--scales", type=Path, required=True, help="the table to start from")
    parser.add_argument("--start", type=Path, help="checkpoint to start from; the zoo's by default")
    options = parser.parse_args()
    train_in_processes(_run, options, on_gpu=False)


if __name__ == "__main__":
    main()
