"""A training of a KDQ student: its losses, its choices of layers, its scores and checkpoints."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from speechquant.core.files import new_folder
from speechquant.core.text import normalizer
from speechquant.core.wer import score_cer, score_wer
from speechquant.students.decoding import greedy_tokens
from speechquant.students.distil import Teacher
from speechquant.students.kdq.checkpoints import save_rounded_student
from speechquant.students.kdq.encodings import Encodings, HeardClip, clip_batches, in_use
from speechquant.students.kdq.layers import (
    attach_rounding,
    decoded,
    is_rounded,
    layers_of,
    loss_of_rounding,
    round_layer,
    weight_costs,
)
from speechquant.students.kdq.losses import (
    hidden_costs,
    layers_to_quantize,
    matched,
    prediction_loss,
    whole_loss,
)
from speechquant.students.kdq.matching import NO_MATCHING, STATIC, map_of, static_map
from speechquant.students.kdq.quantizers import Quantizer
from speechquant.students.kdq.settings import Plan, Settings
from speechquant.students.losses import IGNORED
from speechquant.training.processes import ALONE, Processes
from speechquant.training.run import TrainingRun, fast_products, train_to_end
from speechquant.training.samples import Sample, Sets

_NORMALIZER = "whisper"
_CLIPS_AT_ONCE = 8
# Times the longest text of a group, as in students.distil.
_MOST_TOKENS = 2


class Guide(nn.Module):
    """W_A and what has been chosen or gathered so far, so that a killed run knows it."""

    layer_map: Tensor
    hidden_sums: Tensor

    def __init__(self, student_layers: int, teacher_layers: int, width: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.transform.weight)
        first = torch.tensor(static_map(student_layers, teacher_layers))
        self.register_buffer("layer_map", first)
        self.register_buffer("hidden_sums", torch.zeros(student_layers))


@dataclass(frozen=True)
class Pair:
    """A teacher and the student that learns from it."""

    teacher: Teacher
    student: Any


class KdqRun(TrainingRun):
    """Trains a student's decoder; its encoder is the teacher's and stays as it is.

    `encoded` keeps the encoder's outputs; `processes` are all that train the student together.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        plan: Plan,
        pair: Pair,
        encoded: Path,
        processes: Processes = ALONE,
    ) -> None:
        teacher, student = pair.teacher, pair.student
        self.settings, self.plan, self.teacher = settings, plan, teacher
        self.student = student.to(processes.device).requires_grad_(False)
        teacher.model.to(processes.device)
        self._layers, self._taught = layers_of(student), layers_of(teacher.model)
        self.quantizer = Quantizer(plan.quantizer) if plan.is_quantized else None
        if self.quantizer is not None:
            for layer in self._layers:
                attach_rounding(layer, self.quantizer)
        decoder = student.model.decoder.requires_grad_(True)
        width = student.config.d_model
        self.guide = Guide(len(self._layers), len(self._taught), width).to(processes.device)
        self._encodings = Encodings(encoded, teacher.model, processes.device)
        modules = {"decoder": decoder, "guide": self.guide}
        optimizer = torch.optim.Adam(
            [parameter for module in modules.values() for parameter in module.parameters()],
            lr=settings.peak_learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        super().__init__(folder, settings, modules, optimizer, processes)

    @property
    def is_rounded(self) -> bool:
        """Whether the student is as it will be used."""
        return self.quantizer is None or any(map(is_rounded, self._layers))

    def take_step(self, clips: Sequence[HeardClip]) -> dict[str, float]:
        """Take one step on a batch and return its losses."""
        if self.quantizer is not None:
            if self.step >= self.settings.quantize_from and not self.is_rounded:
                self._choose_layers_to_quantize()
            if self.step % self.settings.match_every == 0:
                self._match_by_weights(self.quantizer)
        entropy, prediction, by_layer = self._losses(clips)
        self.guide.hidden_sums += self.processes.mean(by_layer.detach())
        hidden = by_layer.mean()
        distillation = prediction
        if self.plan.matching != NO_MATCHING:
            distillation = prediction + self.settings.hidden_weight * hidden
        rounding = self._rounding_loss()
        self.descend(whole_loss(distillation, rounding, entropy, self.settings.weights))
        return {
            "cross_entropy": entropy.item(),
            "prediction": prediction.item(),
            "hidden": hidden.item(),
            "quantization": rounding.item(),
        }

    def _choose_layers_to_quantize(self) -> None:
        """Round the layers with the lowest L_pred + beta L_hidn; all have one L_pred."""
        for layer in layers_to_quantize(self.guide.hidden_sums.tolist(), self.plan.share):
            round_layer(self._layers[layer])

    def _match_by_weights(self, quantizer: Quantizer) -> None:
        """Choose the teacher's layers by equation 12 where they are not fixed."""
        if self.plan.matching in (NO_MATCHING, STATIC):
            return
        transform = self.guide.transform.weight
        costs = weight_costs(self.student, self.teacher.model, transform, quantizer)
        self._keep_map(costs)

    def _keep_map(self, costs: Tensor) -> None:
        shape = (len(self._layers), len(self._taught))
        chosen = map_of(self.plan.matching, lambda: costs.cpu().numpy(), shape)
        self.guide.layer_map.copy_(torch.tensor(chosen))

    def _rounding_loss(self) -> Tensor:
        rounded = [layer for layer in self._layers if is_rounded(layer)]
        if self.quantizer is None or not rounded:
            return torch.zeros((), device=self.processes.device)
        return loss_of_rounding(rounded, self.quantizer)

    def _losses(self, clips: Sequence[HeardClip]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cross-entropy, the prediction loss and each layer's hidden loss."""
        writing = self.teacher.writing
        texts = [clip.sample.text for clip in clips]
        given, wanted = (
            tokens.to(self.processes.device) for tokens in writing.inputs_and_targets(texts)
        )
        hidden = self._encodings.together(list(clips))
        with fast_products(self.processes.kind):
            with torch.no_grad():
                taught_logits, taught = decoded(self.teacher.model, hidden, given)
            logits, states = decoded(self.student, hidden, given)
            heard = wanted != IGNORED
            maps = [self.guide.transform(state[heard]) for state in taught]
        costs = hidden_costs([state[heard] for state in states], maps)
        if self.quantizer is None and self.plan.matching not in (NO_MATCHING, STATIC):
            self._keep_map(self.processes.mean(costs.detach()))
        entropy = cross_entropy(logits[heard].float(), wanted[heard])
        prediction = prediction_loss(taught_logits[heard], logits[heard], self.settings.temperature)
        return entropy, prediction, matched(costs, self.guide.layer_map.tolist())

    @torch.inference_mode()
    def transcribe(self, samples: Sequence[Sample]) -> list[str]:
        """Return the greedy text of each whole chunk; the decoder computes in float32."""
        writing, texts = self.teacher.writing, list[str]()
        chunk = self.teacher.limits.chunk_samples
        self.student.eval()
        with parametrize.cached():
            for first in range(0, len(samples), _CLIPS_AT_ONCE):
                group = samples[first : first + _CLIPS_AT_ONCE]
                most = _MOST_TOKENS * max(len(writing.tokens(sample.text)) for sample in group)
                hidden = self._encodings.together([in_use(sample, chunk) for sample in group])
                rows = greedy_tokens(self.student, hidden, writing, most)
                texts += map(writing.text, rows)
        self.student.train()
        return texts

    def scores(self, sets: dict[str, list[Sample]]) -> dict[str, float]:
        """Return WER and CER of each set in percent, none before the weights are rounded."""
        if not self.is_rounded:
            return {}
        normalize, found = normalizer(_NORMALIZER), dict[str, float]()
        for name, samples in sets.items():
            said = [normalize(sample.text) for sample in samples]
            heard = list(map(normalize, self.processes.divided(samples, self.transcribe)))
            found[f"wer_{name}"] = 100 * score_wer(said, heard).rate
            found[f"cer_{name}"] = 100 * score_cer(said, heard).rate
        return found

    def note(self, **values: Any) -> None:
        """Append a line to the log, with the map and the hours that are left at this pace."""
        left = (self.settings.steps - self.step) * self.seconds / self.step / 3600
        facts: dict[str, Any] = {"hours_left": round(left, 2)}
        if self.plan.matching != NO_MATCHING:
            facts["learns_from"] = self.guide.layer_map.tolist()
        if self.quantizer is not None:
            facts["rounded_layers"] = [
                index for index, layer in enumerate(self._layers) if is_rounded(layer)
            ]
        super().note(**values, **facts)

    def write_checkpoint(self) -> None:
        """Write the student as it is used, and once more where it is the best so far."""
        for name in ("checkpoint", "best") if self.is_best else ("checkpoint",):
            with new_folder(self.folder / name, "config.json", force=True) as folder:
                save_rounded_student(self.student, self.teacher.folder, folder)
                self.copy_notes(folder)


def train(run: KdqRun, sets: Sets, scored: dict[str, list[Sample]]) -> None:
    """Train to the end of the settings, on data whose order the seed alone decides."""
    settings = run.settings
    source = clip_batches(
        sets,
        settings.batch_seconds,
        settings.variants,
        run.teacher.limits.chunk_samples,
        random.Random(settings.seed),
    )
    ahead = run.processes.share(islice(source, run.step * run.processes.count, None))
    run.student.train()
    train_to_end(
        run,
        settings,
        lambda: run.take_step(next(ahead)),
        lambda: run.scores(scored),
        run.write_checkpoint,
    )
