"""Train a model of the zoo: `python -m speechquant.zoo.train hubert --out runs/hubert`.

A run is killed and started again at will: it goes on from its last checkpoint. The learning rate
rises, stays, and falls over the last steps, so that a run can be lengthened while it stays.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import read_audio
from speechquant.core.manifests import LabelledClip, read_data_set
from speechquant.core.wer import score_wer
from speechquant.zoo.augment import Conditions, degrade
from speechquant.zoo.corpus import SAMPLE_RATE_HZ, corpus_manifest
from speechquant.zoo.models import (
    MODEL_NAMES,
    VOCABULARY,
    is_trained_with_mask,
    new_model,
    save_model,
    token_ids,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz' ")
_INT16_FULL_SCALE = 32_767.0
_BLANK = 0
LOG_FILE, SETTINGS_FILE = "log.jsonl", "settings.json"


@dataclass(frozen=True)
class Settings:
    """What a run is made of; written beside its checkpoints."""

    steps: int = 10_000
    warmup_steps: int = 800
    decay_steps: int = 2_000
    peak_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    batch_seconds: float = 42.0
    synthetic_share: float = 0.6
    # The first convolutions settle early, and their backward pass is a third of a step.
    frozen_convolutions: int = 0
    seed: int = 0
    save_every: int = 250
    score_every: int = 1_000


@dataclass(frozen=True)
class Extra:
    """A further data set: how much of what is trained comes from it, which speakers stay unseen."""

    source: Path
    share: float
    hold_out_speakers: int = 0

    @classmethod
    def parse(cls, text: str) -> Extra:
        """Read PATH[,share=0.2][,hold_out=8]."""
        path, *options = text.split(",")
        values = dict(option.split("=") for option in options)
        share, hold_out = float(values.pop("share", 0.2)), int(values.pop("hold_out", 0))
        if values:
            raise ValueError(f"{', '.join(values)}: no such option of a data set")
        return cls(Path(path), share, hold_out)


@dataclass(frozen=True)
class Sample:
    """A clip in memory: 16-bit samples and the text they say."""

    wave: NDArray[np.int16]
    text: str


def split_speakers(
    clips: list[LabelledClip], held_out: int
) -> tuple[list[LabelledClip], list[LabelledClip]]:
    """Return (seen, unseen): the last `held_out` speakers in alphabetical order stay unseen."""
    speakers = sorted({clip.speaker or "" for clip in clips})
    if held_out >= len(speakers):
        raise ValueError(f"{held_out} speakers cannot be held out of {len(speakers)}")
    unseen = set(speakers[len(speakers) - held_out :])
    return (
        [clip for clip in clips if (clip.speaker or "") not in unseen],
        [clip for clip in clips if (clip.speaker or "") in unseen],
    )


def _sample_of(clip: LabelledClip) -> Sample | None:
    text = " ".join((clip.text or "").lower().split())
    if not text or not _ALPHABET.issuperset(text):
        return None
    wave = read_audio(clip.path, SAMPLE_RATE_HZ)
    scaled = np.clip(wave, -1.0, 1.0) * _INT16_FULL_SCALE
    return Sample(scaled.astype(np.int16), text)


def load_samples(clips: list[LabelledClip]) -> list[Sample]:
    """Return the clips whose text is in the alphabet."""
    return [sample for clip in clips if (sample := _sample_of(clip)) is not None]


def join_short_clips(
    clips: list[LabelledClip], rng: random.Random, shorter_than_seconds: float = 1.0
) -> list[Sample]:
    """Return samples in which short clips of one speaker are strung together."""
    samples, short_of = [], dict[str, list[Sample]]()
    for clip in clips:
        sample = _sample_of(clip)
        if sample is None:
            continue
        if len(sample.wave) < shorter_than_seconds * SAMPLE_RATE_HZ:
            short_of.setdefault(clip.speaker or "", []).append(sample)
        else:
            samples.append(sample)
    for words in short_of.values():
        rng.shuffle(words)
        while words:
            taken = [words.pop() for _ in range(min(len(words), rng.randint(1, 7)))]
            gap = np.zeros(rng.randint(800, 4_000), np.int16)
            pieces = [piece for word in taken for piece in (gap, word.wave)]
            samples.append(Sample(np.concatenate(pieces), " ".join(word.text for word in taken)))
    return samples


LIVE_CONDITIONS = Conditions(
    echo_probability=0.15, noise_probability=0.3, snr_db=(5.0, 30.0), peak_dbfs=(-15.0, -1.0)
)


def at_another_speed(sample: Sample, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the sample a little faster or slower, and so higher or lower."""
    wave = sample.wave.astype(np.float32) / _INT16_FULL_SCALE
    speed = rng.uniform(0.87, 1.15)
    positions = np.arange(0, len(wave) - 1, speed)
    return np.asarray(np.interp(positions, np.arange(len(wave)), wave), np.float32)


def _heard(sample: Sample, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the sample at another speed, degraded, with zero mean and unit variance."""
    return normalised(degrade(at_another_speed(sample, rng), SAMPLE_RATE_HZ, LIVE_CONDITIONS, rng))


def normalised(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `wave` as Wav2Vec2FeatureExtractor gives it to the model."""
    return np.asarray((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7), np.float32)


def batches(
    sets: list[tuple[float, list[Sample]]], batch_seconds: float, rng: random.Random
) -> Iterator[list[Sample]]:
    """Yield batches of clips of about one length for ever, the sets mixed by their shares."""
    budget = int(batch_seconds * SAMPLE_RATE_HZ)
    while True:
        shares = [share for share, _ in sets]
        pool = [rng.choice(rng.choices(sets, shares)[0][1]) for _ in range(2_000)]
        pool.sort(key=lambda sample: len(sample.wave) * rng.uniform(0.9, 1.1))
        groups: list[list[Sample]] = [[]]
        for sample in pool:
            longest = max(len(other.wave) for other in [*groups[-1], sample])
            if groups[-1] and longest * (len(groups[-1]) + 1) > budget:
                groups.append([])
            groups[-1].append(sample)
        rng.shuffle(groups)
        yield from groups


def collate(waves: list[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the waves padded with zeros, and their lengths in samples."""
    import torch

    lengths = [len(wave) for wave in waves]
    padded = np.zeros((len(waves), max(lengths)), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    return torch.from_numpy(padded), torch.tensor(lengths)


def attention_mask(name: str, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor | None:
    """Return the mask over samples, None for a model trained without one."""
    import torch

    if not is_trained_with_mask(name):
        return None
    return (torch.arange(waves.shape[1])[None] < lengths[:, None]).long()


class Schedule(Protocol):
    """What a learning rate follows from."""

    @property
    def steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def decay_steps(self) -> int: ...

    @property
    def peak_learning_rate(self) -> float: ...


def learning_rate(step: int, settings: Schedule) -> float:
    """Return the rate at `step`: linear rise, plateau, linear fall to zero."""
    rise = min(1.0, (step + 1) / settings.warmup_steps)
    fall = min(1.0, max(0.0, (settings.steps - step) / settings.decay_steps))
    return settings.peak_learning_rate * min(rise, fall)


def ctc_loss(
    name: str, model: PreTrainedModel, batch: list[Sample], rng: np.random.Generator
) -> torch.Tensor:
    """Return the mean CTC loss of a batch, the convolutions and matmuls in bfloat16."""
    import torch
    from torch.nn.functional import ctc_loss as torch_ctc_loss

    waves, lengths = collate([_heard(sample, rng) for sample in batch])
    labels = [token_ids(sample.text) for sample in batch]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(waves, attention_mask=attention_mask(name, waves, lengths)).logits
    frames = model._get_feat_extract_output_lengths(lengths)  # type: ignore[operator]
    return torch_ctc_loss(
        torch.log_softmax(logits.float(), -1).transpose(0, 1),
        torch.tensor([label for row in labels for label in row]),
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
            texts.append(greedy_text(model(wave).logits[0].argmax(-1).numpy()))
    model.train()
    return texts


def word_error_percent(model: PreTrainedModel, samples: list[Sample]) -> float:
    """Return the WER of the model on the samples, in percent."""
    return 100.0 * score_wer([s.text for s in samples], transcribe(model, samples)).rate


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


class Run:
    """A training run in a folder: model, optimizer, and where it stands."""

    def __init__(self, name: str, folder: Path, settings: Settings, warm_start: Path | None):
        import torch

        self.name, self.folder, self.settings = name, folder, settings
        self.step, self.seconds = 0, 0.0
        torch.manual_seed(settings.seed)
        self.model = new_model(name)
        keep_layout_through_norms(self.model)
        freeze_convolutions(self.model, settings.frozen_convolutions)
        if warm_start is not None:
            self._copy_matching_weights(warm_start)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self._state_path = folder / "state.pt"
        if self._state_path.exists():
            self._restore()

    def _copy_matching_weights(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        def bare(key: str) -> str:
            return key.split(".", 1)[1] if key.split(".")[0] in MODEL_NAMES else key

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

    def _restore(self) -> None:
        import torch

        state = torch.load(self._state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("going on from step %d", self.step)

    def save(self) -> None:
        """Write the state a killed run starts from, in one rename."""
        import torch

        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self._state_path.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self._state_path)

    def write_checkpoint(self) -> None:
        """Write the model in Hugging Face format, with the log and the settings that made it."""
        folder = self.folder / "checkpoint"
        save_model(self.name, self.model, folder)
        shutil.copyfile(self.folder / LOG_FILE, folder / f"training-{LOG_FILE}")
        shutil.copyfile(self.folder / SETTINGS_FILE, folder / f"training-{SETTINGS_FILE}")

    def note(self, **values: Any) -> None:
        """Append a line to the log of the run."""
        row = {"step": self.step, "minutes": round(self.seconds / 60, 1), **values}
        log.info("%s", row)
        with (self.folder / LOG_FILE).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def train_on(self, batch: list[Sample]) -> float:
        """Take one step and return its loss."""
        import torch

        # Seeded by the step, so that a resumed run does not hear the first noises again.
        rng = np.random.default_rng((self.settings.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        loss = ctc_loss(self.name, self.model, batch, rng)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        # One clip in bfloat16 can overflow; a step that is no number would end the run.
        if math.isfinite(float(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())


def train(
    run: Run, sets: list[tuple[float, list[Sample]]], scored: dict[str, list[Sample]]
) -> None:
    """Train to the end of the settings, saving the checkpoint in Hugging Face format as it goes."""
    settings = run.settings
    run.model.train()
    source = batches(sets, settings.batch_seconds, random.Random(f"{settings.seed}/{run.step}"))
    losses, started = [], time.monotonic()
    while run.step < settings.steps:
        losses.append(run.train_on(next(source)))
        if run.step % settings.save_every and run.step != settings.steps:
            continue
        run.seconds += time.monotonic() - started
        started = time.monotonic()
        scores = {}
        if run.step % settings.score_every == 0 or run.step == settings.steps:
            scores = {
                f"wer_{name}": round(word_error_percent(run.model, samples), 2)
                for name, samples in scored.items()
            }
        run.note(loss=round(float(np.mean(losses)), 4), **scores)
        if scores:
            run.write_checkpoint()
        losses.clear()
        run.save()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m speechquant.zoo.train")
    parser.add_argument("model", choices=MODEL_NAMES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--extra-data",
        type=Extra.parse,
        action="append",
        default=[],
        help="PATH[,share=0.2][,hold_out=8]: a manifest or LibriSpeech folder to train on too",
    )
    parser.add_argument(
        "--warm-start", type=Path, help="checkpoint whose fitting weights are taken"
    )
    parser.add_argument("--threads", type=int, help="threads of torch")
    defaults = asdict(Settings())
    for key, value in defaults.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    import torch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(**{key: getattr(options, key) for key in asdict(Settings())})
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(settings.seed)
    synthetic = load_samples(read_data_set(corpus_manifest("train")))
    sets = [(settings.synthetic_share, synthetic)]
    scored = {"zoo_dev": load_samples(read_data_set(corpus_manifest("dev")))[:200]}
    for extra in options.extra_data:
        seen, unseen = split_speakers(read_data_set(extra.source), extra.hold_out_speakers)
        sets.append((extra.share, join_short_clips(seen, rng)))
        if unseen:
            scored[extra.source.name] = load_samples(unseen)
    for share, samples in sets:
        hours = sum(len(sample.wave) for sample in samples) / SAMPLE_RATE_HZ / 3600
        log.info("share %.2f: %d samples, %.2f h", share, len(samples), hours)
    used = {
        **asdict(settings),
        "extra_data": [
            # The folder's name alone: where it lies is nobody else's business.
            {**asdict(extra), "source": extra.source.name}
            for extra in options.extra_data
        ],
        "warm_start": options.warm_start.name if options.warm_start else None,
    }
    (options.out / SETTINGS_FILE).write_text(json.dumps(used, indent=1) + "\n")
    run = Run(options.model, options.out, settings, options.warm_start)
    train(run, sets, scored)


if __name__ == "__main__":
    main()
