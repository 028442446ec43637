"""Train a model of the zoo: `python -m speechquant.zoo.train hubert --out runs/hubert`.

A run is killed and started again at will: it goes on from its last checkpoint. The learning rate
rises, stays, and falls over the last steps, so that a run can be lengthened while it stays.
`torchrun --nproc-per-node N -m speechquant.zoo.train ...` runs it in several processes.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.wer import score_wer
from speechquant.training.augment import degrade
from speechquant.training.batches import batches, collate
from speechquant.training.command_line import (
    begin,
    run_parser,
    settings_of,
    train_in_processes,
)
from speechquant.training.processes import ALONE, Processes
from speechquant.training.run import TrainingRun, fast_products, train_to_end
from speechquant.training.samples import LIVE_CONDITIONS, Sample, Sets, at_another_speed
from speechquant.training.schedule import RunSettings
from speechquant.zoo.corpus import SAMPLE_RATE_HZ
from speechquant.zoo.models import (
    CTC_MODELS,
    VOCABULARY,
    is_trained_with_mask,
    new_model,
    save_model,
    token_ids,
)
from speechquant.zoo.training_sets import training_sets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_BLANK = 0


@dataclass(frozen=True)
class Settings(RunSettings):
    """What a run is made of; written beside its checkpoints."""

    synthetic_share: float = 0.6
    # The first convolutions settle early, and their backward pass is a third of a step.
    frozen_convolutions: int = 0


def _heard(sample: Sample, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the sample at another speed, degraded, with zero mean and unit variance."""
    return normalised(degrade(at_another_speed(sample, rng), SAMPLE_RATE_HZ, LIVE_CONDITIONS, rng))


def normalised(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `wave` as Wav2Vec2FeatureExtractor gives it to the model."""
    return np.asarray((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7), np.float32)


def attention_mask(name: str, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor | None:
    """Return the mask over samples, None for a model trained without one."""
    import torch

    if not is_trained_with_mask(name):
        return None
    return (torch.arange(waves.shape[1])[None] < lengths[:, None]).long()


def ctc_loss(
    name: str, model: PreTrainedModel, batch: list[Sample], rng: np.random.Generator
) -> torch.Tensor:
    """Return the mean CTC loss of a batch, the convolutions and matmuls in bfloat16."""
    waves, lengths = collate([_heard(sample, rng) for sample in batch])
    mask = attention_mask(name, waves, lengths)
    with fast_products(model.device.type):
        logits = model(
            waves.to(model.device), attention_mask=None if mask is None else mask.to(model.device)
        ).logits
    frames = model._get_feat_extract_output_lengths(lengths)  # type: ignore[operator]
    return text_loss(logits, frames, [sample.text for sample in batch])


def text_loss(logits: torch.Tensor, frames: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
    """Return the mean CTC loss of texts, given the logits of clips of so many frames."""
    import torch
    from torch.nn.functional import ctc_loss as torch_ctc_loss

    labels = [token_ids(text) for text in texts]
    return torch_ctc_loss(
        torch.log_softmax(logits.float(), -1).transpose(0, 1),
        torch.tensor([label for row in labels for label in row]).to(logits.device),
        frames,
        torch.tensor([len(row) for row in labels]),
        blank=_BLANK,
        zero_infinity=True,
    )


def greedy_text(ids: NDArray[np.int64]) -> str:
    """Return what a path through the labels says."""
    kept = [
        label for i, label in enumerate(ids) if label != _BLANK and (i == 0 or label != ids[i - 1])
    ]
    return " ".join("".join(VOCABULARY[label] for label in kept).replace("|", " ").split())


def transcribe(model: PreTrainedModel, samples: list[Sample]) -> list[str]:
    """Return the greedy text of each sample, one at a time."""
    import torch

    model.eval()
    texts = []
    with torch.inference_mode():
        for sample in samples:
            wave = torch.from_numpy(normalised(sample.wave.astype(np.float32)))[None]
            labels = model(wave.to(model.device)).logits[0].argmax(-1)
            texts.append(greedy_text(labels.cpu().numpy()))
    model.train()
    return texts


def word_error_percent(
    model: PreTrainedModel, samples: list[Sample], processes: Processes = ALONE
) -> float:
    """Return the WER of the model on the samples, in percent."""
    texts = processes.divided(samples, lambda own: transcribe(model, own))
    return 100.0 * score_wer([s.text for s in samples], texts).rate


def keep_layout_through_norms(model: PreTrainedModel) -> None:
    """Make the layer norms of a front end hand on contiguous tensors; the values stay the same.

    Left transposed, the backward pass of the activation that follows takes six times as long.
    """
    extractor: Any = model.base_model.feature_extractor
    for layer in extractor.conv_layers:
        if model.config.feat_extract_norm == "layer":
            layer.forward = _contiguous_forward(layer)


def freeze_convolutions(model: PreTrainedModel, count: int) -> None:
    """Leave the first `count` convolutions of the front end as they are."""
    extractor: Any = model.base_model.feature_extractor
    # Otherwise the front end asks for the gradient of the waveform, through every layer.
    extractor._requires_grad = False
    for layer in extractor.conv_layers[:count]:
        layer.requires_grad_(False)


def _contiguous_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        normed = layer.layer_norm(layer.conv(hidden).transpose(-2, -1)).transpose(-2, -1)
        activated: torch.Tensor = layer.activation(normed.contiguous())
        return activated

    return forward


class CtcRun(TrainingRun):
    """A training run of a CTC model of the zoo."""

    name: str
    model: PreTrainedModel
    settings: RunSettings

    def train_on(self, batch: list[Sample]) -> float:
        """Take one step and return its loss."""
        # Seeded by the step, so that a resumed run does not hear the first noises again.
        rng = np.random.default_rng((self.settings.seed, self.processes.place(self.step)))
        loss = ctc_loss(self.name, self.model, batch, rng)
        self.descend(loss)
        return float(loss.detach())

    def write_checkpoint(self) -> None:
        """Write the model as it is after scoring."""


class Run(CtcRun):
    """A training run in float."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Settings,
        warm_start: Path | None,
        processes: Processes = ALONE,
    ) -> None:
        import torch

        self.name, self.settings = name, settings
        torch.manual_seed(settings.seed)
        self.model = new_model(name)
        keep_layout_through_norms(self.model)
        freeze_convolutions(self.model, settings.frozen_convolutions)
        if warm_start is not None:
            self._copy_matching_weights(warm_start)
        self.model.to(processes.device)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        super().__init__(folder, settings, {"model": self.model}, optimizer, processes)

    def _copy_matching_weights(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        def bare(key: str) -> str:
            return key.split(".", 1)[1] if key.split(".")[0] in CTC_MODELS else key

        given = {
            bare(key): value for key, value in load_file(checkpoint / "model.safetensors").items()
        }
        own = self.model.state_dict()
        taken = {
            key: given[bare(key)].float()
            for key, value in own.items()
            if bare(key) in given and given[bare(key)].shape == value.shape
        }
        self.model.load_state_dict(taken, strict=False)
        log.info("%d of %d tensors taken from %s", len(taken), len(own), checkpoint)

    def write_checkpoint(self) -> None:
        """Write the model in Hugging Face format, with the log and the settings that made it."""
        folder = self.folder / "checkpoint"
        save_model(self.name, self.model, folder)
        self.copy_notes(folder)


def train(run: CtcRun, sets: Sets, scored: dict[str, list[Sample]]) -> None:
    """Train to the end of the settings, writing the checkpoint as it goes."""
    settings = run.settings
    run.model.train()
    drawn = batches(sets, settings.batch_seconds, random.Random(f"{settings.seed}/{run.step}"))
    source = run.processes.share(drawn)
    train_to_end(
        run,
        settings,
        lambda: {"loss": run.train_on(next(source))},
        lambda: {
            f"wer_{name}": word_error_percent(run.model, samples, run.processes)
            for name, samples in scored.items()
        },
        run.write_checkpoint,
    )


def _run(options: argparse.Namespace, processes: Processes) -> None:
    settings = settings_of(options, Settings())
    warm_start = options.warm_start.name if options.warm_start else None
    begin(options, settings, processes, warm_start=warm_start)
    rng = random.Random(settings.seed)
    sets, scored = training_sets(options.extra_data, settings.synthetic_share, rng)
    run = Run(options.model, options.out, settings, options.warm_start, processes)
    train(run, sets, scored)


def main() -> None:
    """Run the command line."""
    parser = run_parser(__doc__, "speechquant.zoo.train", Settings())
    parser.add_argument("model", choices=CTC_MODELS)
    parser.add_argument(
        "--warm-start", type=Path, help="checkpoint whose fitting weights are taken"
    )
    options = parser.parse_args()
    train_in_processes(_run, options)


if __name__ == "__main__":
    main()
