"""Trainings for tests of two processes, in a module of their own: the other process runs it too.

Each takes the processes and a folder, and returns what `result_of` reads there.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tiny_whisper import CHUNK_SECONDS, save_tiny_whisper, small_teacher

from speechquant.core.errors import OptionError
from speechquant.students.distil import read_teacher
from speechquant.students.kdq import run as kdq
from speechquant.students.kdq.encodings import clip_batches
from speechquant.students.kdq.settings import APOT, Plan
from speechquant.students.kdq.settings import Settings as KdqSettings
from speechquant.students.student import Shape, student_of
from speechquant.training.batches import batches
from speechquant.training.processes import ALONE, Processes, joined_processes
from speechquant.training.run import SETTINGS_FILE, TrainingRun, fast_products, train_to_end
from speechquant.training.samples import Sample
from speechquant.training.schedule import RunSettings
from speechquant.zoo import train as ctc
from speechquant.zoo import train_wavlm_from_whisper as wavlm
from speechquant.zoo import wavlm_stages as stages

RATE_HZ = 16_000
SETTINGS = RunSettings(
    steps=2, warmup_steps=1, decay_steps=4, batch_seconds=1.2, save_every=1, score_every=2
)
CTC_SETTINGS = ctc.Settings(**asdict(SETTINGS))
STAGE_SETTINGS = stages.Settings(**asdict(SETTINGS), blocks_steps=1, front_end_steps=1)
# A batch is one clip in a whole chunk.
KDQ_SETTINGS = KdqSettings(
    steps=3, warmup_steps=1, batch_seconds=CHUNK_SECONDS, save_every=1, score_every=3, variants=2,
    quantize_from=1, match_every=1, peak_learning_rate=1e-3,
)  # fmt: skip


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample((rng.standard_normal(RATE_HZ // 2 + 100 * i) * 3_000).astype(np.int16), "yes no")
        for i in range(count)
    ]


SETS = [(1.0, samples(6))]


class Lines(torch.nn.Module):
    """Of its parameters one is used by all, one by the second process alone, one by nobody."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        # Transposed in memory, which no process may see.
        self.all = torch.nn.Parameter(scale * torch.arange(6.0).reshape(3, 2).T)
        self.second = torch.nn.Parameter(torch.full((2,), scale))
        self.nobody = torch.nn.Parameter(torch.full((2,), scale))
        self.register_buffer("count", torch.tensor(int(scale)))

    def forward(self, given: torch.Tensor, *, is_second: bool) -> torch.Tensor:
        out = self.all @ given
        return (out * self.second if is_second else out).sum()


def train_lines(processes: Processes, folder: Path) -> dict[str, Any]:
    """Take one step from other weights and with another input in each process, then go on."""
    own = folder / f"of-{processes.rank}"
    own.mkdir()
    settings = RunSettings(steps=1, warmup_steps=1, decay_steps=1, peak_learning_rate=0.5)

    def new_run() -> tuple[Lines, TrainingRun]:
        model = Lines(1.0 + processes.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
        return model, TrainingRun(own, settings, {"model": model}, optimizer, processes)

    model, run = new_run()
    begun = {name: value.clone() for name, value in model.state_dict().items()}

    def take_step() -> dict[str, float]:
        given = 0.02 * torch.tensor([1.0, 2.0, 3.0]) * (1 + processes.rank)
        run.descend(model(given, is_second=processes.rank == 1))
        return {"loss": float(processes.rank)}

    def score() -> dict[str, float]:
        heard = processes.divided([1, 2, 3], lambda own: [10 * number for number in own])
        return {f"wer_{index}": float(value) for index, value in enumerate(heard)}

    train_to_end(run, settings, take_step, score, (own / "checkpoint").touch)
    try:
        new_run()
        refused = ""
    except OptionError as error:
        refused = str(error)
    return {"begun": begun, "model": model.state_dict(), "refused": refused}


class KilledError(Exception):
    """What ends a training in the middle."""


def without_chance(model: Any) -> None:
    """Leave out what is drawn in the order of the calculations."""
    model.config.apply_spec_augment = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def begun(folder: Path, settings: RunSettings, processes: Processes = ALONE) -> Path:
    if processes.is_first:
        folder.mkdir(exist_ok=True)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
    processes.wait()
    return folder


def train_ctc(processes: Processes, folder: Path) -> dict[str, Any]:
    """Train zoo:hubert with its second step killed, and go on."""
    taken = list[int]()

    def new_run() -> ctc.Run:
        out = begun(folder / "run", CTC_SETTINGS, processes)
        run = ctc.Run("hubert", out, CTC_SETTINGS, None, processes)
        without_chance(run.model)
        descend = run.descend

        def noted(loss: torch.Tensor) -> None:
            taken.append(run.step)
            if len(taken) == 2:
                raise KilledError
            descend(loss)

        run.descend = noted  # type: ignore[method-assign]
        return run

    try:
        ctc.train(new_run(), SETS, {"self": samples(3)})
    except KilledError:
        processes.wait()
    run = new_run()
    ctc.train(run, SETS, {"self": samples(3)})
    return {"taken": taken, "model": run.model.state_dict()}


def ctc_weights_of_one(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """Return what `train_ctc` should give: each step down the mean of the processes' losses."""
    run = ctc.Run("hubert", folder, CTC_SETTINGS, None)
    without_chance(run.model)
    run.model.train()
    for step in range(CTC_SETTINGS.steps):
        # Begun, and begun again after the first step.
        source = batches(SETS, CTC_SETTINGS.batch_seconds, random.Random(f"0/{step}"))
        losses = [
            ctc.ctc_loss("hubert", run.model, batch, np.random.default_rng((0, place)))
            for place, batch in enumerate(islice(source, processes), step * processes)
        ]
        run.descend(torch.stack(losses).mean())
    return run.model.state_dict()


def new_models() -> stages.Models:
    torch.manual_seed(0)
    return stages.Models(small_teacher(256, 100).encoder.eval().requires_grad_(False))


def train_stages(processes: Processes, folder: Path) -> dict[str, Any]:
    """Train a WavLM from a Whisper in all of its stages."""
    models, out = new_models(), begun(folder / "run", STAGE_SETTINGS, processes)
    for kind in stages.STAGES:
        wavlm.train(kind(out, STAGE_SETTINGS, models, processes), SETS, {"self": samples(3)})
    return {"model": models.student.state_dict()}


def stage_weights_of_one(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """Return what `train_stages` should give."""
    models, out = new_models(), begun(folder, STAGE_SETTINGS)
    models.student.train()
    share = STAGE_SETTINGS.degraded_share
    for kind in stages.STAGES:
        stage = kind(out, STAGE_SETTINGS, models)
        source = batches(SETS, STAGE_SETTINGS.batch_seconds, random.Random(f"0/{stage.name}/0"))
        for step in range(stage.settings.steps):
            losses = []
            for place, some in enumerate(islice(source, processes), step * processes):
                rng = np.random.default_rng((0, place))
                waves = [stages.heard_by_chance(sample, share, rng) for sample in some]
                batch = stages.batch_of(waves, [sample.text for sample in some])
                with fast_products():
                    losses += stage.losses(batch, rng).values()
            stage.descend(torch.stack(losses).sum() / processes)
    return models.student.state_dict()


def new_kdq_run(folder: Path, processes: Processes = ALONE) -> kdq.KdqRun:
    if processes.is_first:
        save_tiny_whisper(folder / "teacher", decoder_layers=4)
    processes.wait()
    teacher = read_teacher(str(folder / "teacher"), "en")
    pair = kdq.Pair(teacher, student_of(teacher.model, Shape(2, 2, "none")))
    out = begun(folder / "run", KDQ_SETTINGS, processes)
    plan = Plan("restrained", APOT, 0.5)
    return kdq.KdqRun(out, KDQ_SETTINGS, plan, pair, folder / "encoded", processes)


def kdq_weights(run: kdq.KdqRun) -> dict[str, torch.Tensor]:
    return {**run.student.model.decoder.state_dict(), **run.guide.state_dict()}


def in_float32() -> AbstractContextManager[Any]:
    """Return a context without bfloat16, where one batch of two clips is two batches of one."""
    return mock.patch.object(kdq, "fast_products", lambda _device: nullcontext())


def train_kdq(processes: Processes, folder: Path) -> dict[str, Any]:
    """Train a KDQ student, half of whose layers are rounded after the first step."""
    run = new_kdq_run(folder, processes)
    with in_float32():
        kdq.train(run, SETS, {"self": samples(3)})
    return {"model": kdq_weights(run)}


def kdq_weights_of_one(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """Return what `train_kdq` should give: all texts are as long, so a mean of means is a mean."""
    run = new_kdq_run(folder)
    chunk = run.teacher.limits.chunk_samples
    source = clip_batches(SETS, CHUNK_SECONDS, KDQ_SETTINGS.variants, chunk, random.Random(0))
    run.student.train()
    with in_float32():
        for _ in range(KDQ_SETTINGS.steps):
            run.take_step([clip for batch in islice(source, processes) for clip in batch])
    return kdq_weights(run)


TRAININGS: dict[str, Callable[[Processes, Path], dict[str, Any]]] = {
    training.__name__: training for training in (train_lines, train_ctc, train_stages, train_kdq)
}


def train_all(folder: Path) -> None:
    """Run the trainings in the processes that this one belongs to, and keep what they return."""
    with joined_processes(on_gpu=False) as processes:
        for name, training in TRAININGS.items():
            own = folder / name
            if processes.is_first:
                own.mkdir()
            processes.wait()
            torch.save(training(processes, own), own / f"result-{processes.rank}.pt")


def result_of(rank: int, folder: Path) -> Any:
    return torch.load(folder / f"result-{rank}.pt", weights_only=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]))
