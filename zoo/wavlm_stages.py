"""The stages in which a WavLM is trained from a Whisper, each a run in its own folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from speechquant.training.augment import degrade
from speechquant.training.batches import collate
from speechquant.training.processes import ALONE, Processes
from speechquant.training.run import (
    SETTINGS_FILE,
    TrainingRun,
    fast_products,
)
from speechquant.training.samples import (
    LIVE_CONDITIONS,
    Sample,
    at_another_speed,
)
from speechquant.training.schedule import RunSettings
from speechquant.zoo.centred_norms import centre_norms
from speechquant.zoo.corpus import SAMPLE_RATE_HZ
from speechquant.zoo.filter_bank import fit_projection, hear_in_bands
from speechquant.zoo.models import WAVLM, save_model
from speechquant.zoo.train import greedy_text, normalised, text_loss
from speechquant.zoo.whisper_into_wavlm import (
    frames_of,
    front_end_features,
    is_heard,
    stem_features,
    student_of,
    student_states,
    teacher_states,
    unexplained,
)
from speechquant.zoo.whisper_places import PlaceMeans, place_means, tell_distances

if TYPE_CHECKING:
    import torch


_MASKED_FRAMES = 10


@dataclass(frozen=True)
class Settings(RunSettings):
    """What the stages are made of; `steps` and `peak_learning_rate` are those of the last."""

    steps: int = 7_000
    warmup_steps: int = 60
    decay_steps: int = 4_000
    peak_learning_rate: float = 3e-4
    batch_seconds: float = 32.0
    save_every: int = 100
    score_every: int = 500
    synthetic_share: float = 0.4
    blocks_steps: int = 300
    blocks_learning_rate: float = 7e-4
    front_end_steps: int = 1_000
    front_end_learning_rate: float = 2e-3
    # How much the distance to the teacher weighs beside CTC.
    whole_distance: float = 2.0
    masked_share: float = 0.05
    # The clips that get noise and the echo of a room.
    degraded_share: float = 0.3
    # The learning rate of the front end at last, in parts of that of the rest: at four times as
    # much CTC rises again.
    front_end_share: float = 0.7


@dataclass(frozen=True)
class Batch:
    """Waves of unit variance in rows, [clips, samples], their samples, their texts."""

    waves: torch.Tensor
    lengths: torch.Tensor
    texts: tuple[str, ...]

    @property
    def heard(self) -> torch.Tensor:
        """Which frames are no padding."""
        return is_heard(frames_of(self.waves.shape[1]), self.lengths)


def batch_of(waves: list[NDArray[np.float32]], texts: Sequence[str]) -> Batch:
    """Return waves as a batch."""
    padded, lengths = collate([normalised(wave) for wave in waves])
    return Batch(padded, lengths, tuple(texts))


def heard_by_chance(
    sample: Sample, degraded_share: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a sample at another speed, as often as `degraded_share` says with noise and echo."""
    wave = at_another_speed(sample, rng)
    if rng.random() < degraded_share:
        return degrade(wave, SAMPLE_RATE_HZ, LIVE_CONDITIONS, rng)
    return wave


def ctc_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean CTC loss of the clips of a batch."""
    return text_loss(logits, frames_of(batch.lengths), batch.texts)


class Models:
    """The teacher, and the student that is trained from it."""

    def __init__(self, teacher: Any, student: Any = None) -> None:
        import torch
        from transformers import WhisperFeatureExtractor

        self.teacher = teacher
        self.student = student_of(teacher) if student is None else student
        self.places: PlaceMeans | None = None
        bins = teacher.config.num_mel_bins
        self.filters = torch.from_numpy(WhisperFeatureExtractor(bins).mel_filters).float()

    def stem(self, waves: torch.Tensor) -> torch.Tensor:
        """Return the features that the teacher's stem gives."""
        return stem_features(self.teacher, self.filters, waves)

    def learn_places(self, windows: Sequence[NDArray[np.float32]]) -> None:
        """Learn from windows of one length what a frame's place alone makes of its state."""
        import torch

        with torch.inference_mode(), fast_products():
            self.places = place_means(self.teacher, self._stems(windows))

    def tell_distances(self, windows: Sequence[NDArray[np.float32]]) -> None:
        """Let the student's heads look where the teacher's look."""
        import torch

        with torch.inference_mode():
            stems = self._stems(windows)
        tell_distances(self.teacher, self.student, stems)

    def tell_bands(self, windows: Sequence[NDArray[np.float32]]) -> None:
        """Let the student's front end begin as filters, as near to the stem as they come."""
        waves = batch_of(list(windows), []).waves
        hear_in_bands(self.student, waves, self.filters.double().numpy())
        fit_projection(self.student, waves, self.stem(waves))

    def centre(self, windows: Sequence[NDArray[np.float32]]) -> None:
        """Take the constants out of what the student's norms give."""
        centre_norms(self.student, self._stems(windows))

    def _stems(self, windows: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        import torch

        return torch.cat([self.stem(batch_of([window], [""]).waves) for window in windows])

    def targets(self, stem: torch.Tensor, heard: torch.Tensor) -> list[torch.Tensor]:
        """Return the teacher's states, without what the places of the frames make of them."""
        states = teacher_states(self.teacher, stem, heard)
        return states if self.places is None else self.places.at_one_place(states)

    def logits(self, features: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """Return the labels' logits that the student makes of features."""
        logits: torch.Tensor = self.student.lm_head(
            student_states(self.student, features, heard)[-1]
        )
        return logits


class Stage(TrainingRun):
    """A stage of the training, in its own folder."""

    name: ClassVar[str]
    learns: ClassVar[tuple[str, ...]]  # the parts of the student that are trained, by their names

    def __init__(
        self, out: Path, settings: Settings, models: Models, processes: Processes = ALONE
    ) -> None:
        import torch

        self.out, self.models, self.settings = out, models, self.settings_of(settings)
        folder = out / self.name
        if processes.is_first:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(out / SETTINGS_FILE, folder / SETTINGS_FILE)
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in models.student.named_parameters():
            parameter.requires_grad_(name.startswith(self.learns))
            if parameter.requires_grad:
                groups.setdefault(self.share_of_rate(name), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": params, "share": share} for share, params in groups.items()],
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        super().__init__(folder, self.settings, {"model": models.student}, optimizer, processes)

    def settings_of(self, settings: Settings) -> Settings:
        """Return the settings with the steps and the rate of this stage."""
        return settings

    def share_of_rate(self, name: str) -> float:
        """Return the learning rate of a parameter, in parts of the stage's."""
        return 1.0

    def features(self, waves: torch.Tensor) -> torch.Tensor:
        """Return what the student's blocks are given."""
        return front_end_features(self.models.student, waves)

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return what is to be lowered, by name: their sum is."""
        raise NotImplementedError

    def take_step(self, samples: list[Sample]) -> dict[str, float]:
        """Take one step and return its losses, and its seconds."""
        started = time.monotonic()
        # Seeded by the step, so that a resumed run does not hear the first noises again.
        rng = np.random.default_rng((self.settings.seed, self.processes.place(self.step)))
        share = self.settings.degraded_share
        waves = [heard_by_chance(sample, share, rng) for sample in samples]
        with fast_products():
            losses = self.losses(batch_of(waves, [sample.text for sample in samples]), rng)
        self.descend(sum(losses.values()))  # type: ignore[arg-type]
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        return {**values, "seconds": time.monotonic() - started}

    def note(self, **values: Any) -> None:
        """Append a line to the log, with the hours that this stage still takes."""
        left = (self.settings.steps - self.step) * values["seconds"] / 3600
        super().note(stage=self.name, **values, hours_left=round(left, 2))

    def transcribe(self, samples: list[Sample], at_once: int = 8) -> list[str]:
        """Return the greedy text of each sample."""
        import torch

        self.models.student.eval()
        texts = {}
        order = sorted(range(len(samples)), key=lambda index: len(samples[index].wave))
        for first in range(0, len(order), at_once):
            group = order[first : first + at_once]
            batch = batch_of([samples[index].floats for index in group], [])
            with torch.inference_mode(), fast_products():
                labels = self.models.logits(self.features(batch.waves), batch.heard).argmax(-1)
            for index, row, heard in zip(group, labels, batch.heard, strict=True):
                texts[index] = greedy_text(row[heard].numpy())
        self.models.student.train()
        return [texts[index] for index in range(len(samples))]

    def write_checkpoint(self) -> None:
        """Write the model in Hugging Face format, and once more as the best one where it is."""
        self._write(self.out / "checkpoint")
        if self.is_best:
            self._write(self.out / "best")

    def _write(self, folder: Path) -> None:
        save_model(WAVLM, self.models.student, folder)
        self.copy_notes(folder)


def masked(
    features: torch.Tensor, student: Any, share: float, rng: np.random.Generator
) -> torch.Tensor:
    """Return the features with spans of frames hidden, to be told from what is around them."""
    import torch

    starts = rng.random(features.shape[:2]) < share / _MASKED_FRAMES
    hidden = torch.from_numpy(starts.copy())
    for shift in range(1, _MASKED_FRAMES):
        hidden[:, shift:] |= torch.from_numpy(starts[:, :-shift])
    return torch.where(hidden[..., None], student.wavlm.masked_spec_embed, features)


class BlocksStage(Stage):
    """The blocks learn to do without absolute positions: through its stem, what the teacher gives.

    They learn that in a hundred steps. With CTC beside it they do not, and forget the rest.
    """

    name = "blocks"
    learns = ("wavlm.encoder",)

    def settings_of(self, settings: Settings) -> Settings:
        """Return the settings with the steps and the rate of this stage."""
        return replace(
            settings,
            steps=settings.blocks_steps,
            peak_learning_rate=settings.blocks_learning_rate,
        )

    def features(self, waves: torch.Tensor) -> torch.Tensor:
        """Return the features of the teacher's stem."""
        return self.models.stem(waves)

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the distance to the teacher."""
        import torch

        with torch.no_grad():
            stem = self.models.stem(batch.waves)
            targets = self.models.targets(stem, batch.heard)
        states = student_states(self.models.student, stem, batch.heard)
        return {"distance": unexplained(states, targets, batch.heard).mean()}

    def write_checkpoint(self) -> None:
        """Write nothing: without its front end the model hears nothing."""


class FrontEndStage(Stage):
    """The front end learns to give what the stem gives; no block is needed for it."""

    name = "front-end"
    learns = ("wavlm.feature_extractor", "wavlm.feature_projection")

    def settings_of(self, settings: Settings) -> Settings:
        """Return the settings with the steps and the rate of this stage."""
        return replace(
            settings,
            steps=settings.front_end_steps,
            peak_learning_rate=settings.front_end_learning_rate,
        )

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the distance to the stem."""
        import torch

        with torch.no_grad():
            stem = self.models.stem(batch.waves)
        features = self.features(batch.waves)
        return {"stem": unexplained([features], [stem], batch.heard).mean()}


class WholeStage(Stage):
    """All learns CTC, not far from the teacher."""

    name = "whole"
    learns = ("",)

    def share_of_rate(self, name: str) -> float:
        """Return the share of the front end, which has come near to the stem already."""
        is_front_end = name.startswith(FrontEndStage.learns)
        return self.settings.front_end_share if is_front_end else 1.0

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the CTC loss and the distance to the teacher."""
        import torch

        with torch.no_grad():
            stem = self.models.stem(batch.waves)
            targets = self.models.targets(stem, batch.heard)
        features = self.features(batch.waves)
        student, settings = self.models.student, self.settings
        given = masked(features, student, settings.masked_share, rng)
        states = student_states(student, given, batch.heard)
        return {
            "ctc": ctc_loss(student.lm_head(states[-1]), batch),
            "distance": settings.whole_distance * unexplained(states, targets, batch.heard).mean(),
        }


STAGES: tuple[type[Stage], ...] = (BlocksStage, FrontEndStage, WholeStage)
