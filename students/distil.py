"""Train a smaller Whisper from a larger one: `python -m speechquant.students.distil TEACHER ...`.

The student is made of some of the teacher's layers, with gated attention where --gates says so, and
lowers the cross-entropy of the texts and its divergence from the teacher (equation 1 of the
gated-attention paper). A run is killed and started again at will. `torchrun --nproc-per-node N -m
speechquant.students.distil ...` runs it on several GPUs or machines that share --out.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechquant.core.files import new_folder
from speechquant.core.text import normalizer
from speechquant.core.wer import score_wer
from speechquant.exporter.checkpoint_files import folder_of
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.students.command_line import begin_student, student_parser, train_as_asked
from speechquant.students.decoding import greedy_tokens
from speechquant.students.losses import cross_entropy_and_divergence
from speechquant.students.speech import (
    Limits,
    Writing,
    augmented,
    padded_samples,
    prompt_of,
    read_speech,
)
from speechquant.students.student import GATE_CHOICES, NO_GATES, Shape, save_student, student_of
from speechquant.training.batches import batches, in_rows
from speechquant.training.command_line import settings_of
from speechquant.training.processes import Processes
from speechquant.training.run import TrainingRun, fast_products, train_to_end
from speechquant.training.samples import SAMPLE_RATE_HZ, Sample, Sets
from speechquant.training.schedule import RunSettings
from speechquant.training.whisper import encode, log_mels

if TYPE_CHECKING:
    import torch

_NORMALIZER = "whisper"
_CLIPS_AT_ONCE = 8
# Times the seconds of a batch: short clips, each in a chunk of its own, would be ten times as many.
_MOST_WHOLE_CHUNKS = 2
# Times the longest text of a group: a student that repeats itself early on would write to the end.
_MOST_TOKENS = 2


@dataclass(frozen=True)
class Settings(RunSettings):
    """What a run is made of; written beside its checkpoints.

    The learning rate falls linearly from the end of the warm-up on. A step takes the mean of the
    gradients of `accumulate` batches in each process.
    """

    steps: int = 10_000
    warmup_steps: int = 1_000
    decay_steps: int = field(init=False, default=0)
    peak_learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    batch_seconds: float = 32.0
    accumulate: int = 1
    save_every: int = 100
    score_every: int = 500
    cross_entropy_weight: float = 1.0
    divergence_weight: float = 0.8
    whole_chunk_share: float = 0.25
    augmented_share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay_steps", max(1, self.steps - self.warmup_steps))
        super().__post_init__()
        self.require_one("accumulate")


@dataclass(frozen=True)
class Teacher:
    """A checkpoint's model, its folder, and how it writes texts."""

    model: Any
    folder: Path
    limits: Limits

    @property
    def writing(self) -> Writing:
        """How the student writes too."""
        return self.limits.writing


def read_teacher(source: str, language: str | None) -> Teacher:
    """Return a teacher; raises CheckpointError and OptionError."""
    from tokenizers import Tokenizer

    checkpoint = load_whisper(source)
    generation = checkpoint.generation
    writing = Writing(
        Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode()),
        generation,
        tuple(prompt_of(generation, language, source)),
    )
    limits = Limits(checkpoint.features.chunk_samples, writing)
    return Teacher(checkpoint.model.requires_grad_(False), folder_of(source), limits)


def logits_of(model: Any, features: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the logits after each given token, [clips, tokens, vocabulary]."""
    states = model.model.decoder(
        input_ids=given, encoder_hidden_states=encode(model, features), use_cache=False
    ).last_hidden_state
    logits: torch.Tensor = model.proj_out(states)
    return logits


class Distillation(TrainingRun):
    """A training of a student; `processes` are all that train it together."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        teacher: Teacher,
        student: Any,
        processes: Processes,
    ) -> None:
        import torch
        from transformers import WhisperFeatureExtractor

        self.settings, self.teacher = settings, teacher
        self.student = student.to(processes.device)
        teacher.model.to(processes.device)
        bins = student.config.num_mel_bins
        filters = torch.from_numpy(WhisperFeatureExtractor(bins).mel_filters).float()
        self.filters = filters.to(processes.device)
        optimizer = torch.optim.AdamW(
            [p for p in student.parameters() if p.requires_grad],
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        super().__init__(folder, settings, {"student": student}, optimizer, processes)

    def take_step(self, given: Sequence[list[Sample]]) -> dict[str, float]:
        """Take one step on so many batches and return the means of their losses."""
        rows = []
        for turn, samples in enumerate(given):
            entropy, divergence = self._losses(samples, turn)
            loss = (
                self.settings.cross_entropy_weight * entropy
                + self.settings.divergence_weight * divergence
            )
            rows.append({
                "loss": float(loss.detach()),
                "cross_entropy": float(entropy.detach()),
                "divergence": float(divergence.detach()),
            })  # fmt: skip
            if turn < len(given) - 1:
                (loss / len(given)).backward()
        self.descend(loss / len(given))
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _losses(self, samples: list[Sample], turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        # Seeded by the batch's place in the data, so that every run of a seed hears the same.
        place = self.processes.place(self.step * self.settings.accumulate + turn)
        rng = np.random.default_rng((self.settings.seed, place))
        chunk = self.teacher.limits.chunk_samples
        share = self.settings.augmented_share
        waves = [augmented(sample, chunk, share, rng) for sample in samples]
        longest = max(map(len, waves))
        length = padded_samples(longest, chunk, self.settings.whole_chunk_share, rng)
        if length == chunk:
            budget = _MOST_WHOLE_CHUNKS * self.settings.batch_seconds * SAMPLE_RATE_HZ
            waves = waves[: max(1, int(budget / chunk))]
        features = self._features(waves, length)
        texts = [sample.text for sample in samples[: len(waves)]]
        given, wanted = (
            tokens.to(self.processes.device)
            for tokens in self.teacher.writing.inputs_and_targets(texts)
        )
        with fast_products(self.processes.kind):
            with torch.no_grad():
                taught = logits_of(self.teacher.model, features, given)
            own = logits_of(self.student, features, given)
        return cross_entropy_and_divergence(own, taught, wanted)

    def _features(self, waves: Sequence[Any], length: int) -> torch.Tensor:
        import torch

        rows = torch.from_numpy(in_rows(waves, length)).to(self.processes.device)
        return log_mels(rows, self.filters)

    def transcribe(self, samples: list[Sample]) -> list[str]:
        """Return the greedy text of each sample, in whole chunks as in use."""
        import torch

        self.student.eval()
        texts = list[str]()
        for first in range(0, len(samples), _CLIPS_AT_ONCE):
            group = samples[first : first + _CLIPS_AT_ONCE]
            most = _MOST_TOKENS * max(len(self._writing.tokens(sample.text)) for sample in group)
            with torch.inference_mode(), fast_products(self.processes.kind):
                waves = [sample.floats for sample in group]
                features = self._features(waves, self.teacher.limits.chunk_samples)
                hidden = encode(self.student, features)
                rows = greedy_tokens(self.student, hidden, self._writing, most)
            texts += map(self._writing.text, rows)
        self.student.train()
        return texts

    @property
    def _writing(self) -> Writing:
        return self.teacher.writing

    def word_error_percent(self, samples: list[Sample]) -> float:
        """Return the WER of the student on the samples, in percent."""
        normalize = normalizer(_NORMALIZER)
        heard = map(normalize, self.processes.divided(samples, self.transcribe))
        return 100 * score_wer([normalize(s.text) for s in samples], list(heard)).rate

    def note(self, **values: Any) -> None:
        """Append a line to the log, with the hours that are left at this pace, scoring included."""
        left = (self.settings.steps - self.step) * self.seconds / self.step / 3600
        super().note(**values, hours_left=round(left, 2))

    def write_checkpoint(self) -> None:
        """Write the student in Hugging Face format, and once more where it is the best so far."""
        for name in ("checkpoint", "best") if self.is_best else ("checkpoint",):
            with new_folder(self.folder / name, "config.json", force=True) as folder:
                save_student(self.student, self.teacher.folder, folder)
                self.copy_notes(folder)


def train(run: Distillation, sets: Sets, scored: dict[str, list[Sample]]) -> None:
    """Train to the end of the settings, on data whose order the seed alone decides."""
    source = steps_of(sets, run.settings, run.processes, run.step)
    run.student.train()
    train_to_end(
        run,
        run.settings,
        lambda: run.take_step(next(source)),
        lambda: {f"wer_{name}": run.word_error_percent(some) for name, some in scored.items()},
        run.write_checkpoint,
    )


def steps_of(
    sets: Sets, settings: Settings, processes: Processes, first: int
) -> Iterator[list[list[Sample]]]:
    """Yield the batches of each step from the `first` on that this process trains on."""
    source = batches(sets, settings.batch_seconds, random.Random(settings.seed))
    before = first * settings.accumulate * processes.count
    own = processes.share(islice(source, before, None))
    while True:
        yield list(islice(own, settings.accumulate))


def _run(options: argparse.Namespace, processes: Processes) -> None:
    import torch

    torch.set_flush_denormal(True)
    settings = settings_of(options, Settings())
    shape = Shape(options.encoder_layers, options.decoder_layers, options.gates)
    teacher = read_teacher(options.teacher, options.language)
    student = student_of(teacher.model, shape)
    heard = read_speech(
        options.extra_data, options.dev, options.dev_clips, teacher.limits, settings.seed
    )
    begin_student(options, settings, processes, asdict(shape))
    run = Distillation(options.out, settings, teacher, student, processes)
    train(run, heard.sets, dict(heard.scored))


def main() -> None:
    """Run the command line."""
    parser = student_parser(__doc__, "speechquant.students.distil", Settings())
    parser.add_argument("--encoder-layers", type=int, required=True)
    parser.add_argument("--decoder-layers", type=int, default=2)
    parser.add_argument("--gates", choices=GATE_CHOICES, default=NO_GATES)
    train_as_asked(parser, _run)


if __name__ == "__main__":
    main()
