"""Scores of trials: those of `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.scoring import Job, Score, Trial
from speechquant.engines import open_recognizer, quantize_bundle
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.scorers import new_scorer
from speechquant.engines.trials.task import ScoringTask, labels_of
from speechquant.recipes.evaluate import evaluate

RATE_HZ = 16_000
CLIPS = 6


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> ScoringTask:
    """Noise of several lengths; half of the texts are what the float model hears."""
    folder = tmp_path_factory.mktemp("clips")
    rng, clips = np.random.default_rng(0), []
    with open_recognizer(tiny_bundle, threads=1) as recognizer:
        for index in range(CLIPS):
            wave = rng.standard_normal(6000 + 1700 * index).astype(np.float32) * 0.1
            path = folder / f"{index}.wav"
            soundfile.write(path, wave, RATE_HZ, subtype="FLOAT")
            heard = recognizer.transcribe([wave])[0]
            clips.append(LabelledClip(path, heard.upper() if index % 2 else f"two more {heard}"))
    return ScoringTask(tiny_bundle.folder, tuple(clips), threads=1)


@pytest.fixture(scope="module")
def table(tiny_bundle: Bundle, task: ScoringTask) -> ScaleTable:
    rows = {}
    with ProbeSession(tiny_bundle, 1) as probe:
        seen = [probe.activations_of(clip) for clip in task.clips]
    for name, layer in tiny_bundle.spec.layers.items():
        amax = max(float(np.abs(activations[name]).max()) for activations in seen)
        rows[name] = Scale(layer, amax / 127, amax)
    return ScaleTable(tiny_bundle.model_sha256, "max", Bits(), rows)


def test_every_label_is_a_character_of_its_own_that_a_log_can_hold() -> None:
    labels = [0, 1, 51_864, 55_247, 55_248, 57_295, 57_296, 69_999]
    logits = np.zeros((len(labels), 70_000), np.float32)
    logits[np.arange(len(labels)), labels] = 1.0
    found = labels_of(logits)
    assert len(set(found)) == len(found) == len(labels)
    assert found.encode()  # surrogates have no bytes
    assert found[0] == "0"


def trials_of(table: ScaleTable) -> list[Trial]:
    head = {name: row for name, row in table.tensors.items() if row.layer == "head"}
    no_head = {name: row for name, row in table.tensors.items() if row.layer != "head"}
    return [
        Trial(replace(table, tensors={}), False, "float"),
        Trial(replace(table, tensors=head), False, "head alone"),
        Trial(table, True, "all"),
        Trial(replace(table, tensors=no_head, float_layers=("head",)), True, "all but head"),
    ]


def jobs_of(*trials: Trial) -> list[Job]:
    return [Job(trial, place) for place in range(CLIPS) for trial in trials]


def errors_by_evaluate(bundle: Bundle, task: ScoringTask) -> list[tuple[str, int, int]]:
    with open_recognizer(bundle, threads=1) as recognizer:
        result = evaluate(recognizer, task.clips)
    return [(clip.hypothesis, clip.errors, clip.reference_words) for clip in result.clips]


def rows_of(scores: list[Score]) -> list[tuple[str, int, int]]:
    return [(score.hypothesis, score.errors, score.words) for score in scores]


def test_the_float_trial_has_the_errors_of_evaluate(
    tiny_bundle: Bundle, task: ScoringTask, table: ScaleTable
) -> None:
    scores = list(new_scorer(task).score(jobs_of(trials_of(table)[0])))
    assert rows_of(scores) == errors_by_evaluate(tiny_bundle, task)
    assert [score.errors for score in scores] == [2, 0] * (CLIPS // 2)
    lengths = [tiny_bundle.spec.frames_of(6000 + 1700 * index) for index in range(CLIPS)]
    assert [len(score.labels) for score in scores] == lengths


@pytest.mark.parametrize("place", [2, 3])
def test_a_quantized_trial_has_the_errors_of_evaluate(
    tiny_bundle: Bundle, task: ScoringTask, table: ScaleTable, tmp_path: Path, place: int
) -> None:
    trial = trials_of(table)[place]
    quantized = quantize_bundle(tiny_bundle, tmp_path / "quantized", trial.table)
    scores = rows_of(list(new_scorer(task).score(jobs_of(trial))))
    expected = errors_by_evaluate(quantized, task)
    # A sum in another order may tip one value over a half, and with it a letter.
    assert sum(a == b for a, b in zip(scores, expected, strict=True)) >= CLIPS - 1
    assert [row[2] for row in scores] == [row[2] for row in expected]
