"""Scores of trials: the same in one process and in several, and those of `evaluate`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError, OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.scoring import Job, Score, Trial
from speechquant.engines import open_recognizer, quantize_bundle
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.scorers import ScoringPool, new_scorer, open_scorer
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


def test_two_processes_score_as_one_does(task: ScoringTask, table: ScaleTable) -> None:
    jobs = jobs_of(*trials_of(table))
    alone = list(new_scorer(task).score(jobs))
    with ScoringPool(task, 2) as pool:
        assert list(pool.score(jobs)) == alone
        assert list(pool.score(list(reversed(jobs)))) == list(reversed(alone))
    assert len({score.labels for score in alone}) > CLIPS  # the trials differ


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


def test_an_error_in_a_process_says_what_it_says_in_this_one(
    task: ScoringTask, table: ScaleTable, tmp_path: Path
) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(10), RATE_HZ)
    broken = replace(task, clips=(*task.clips[:1], LabelledClip(short, "yes")))
    jobs = [Job(trials_of(table)[0], place) for place in range(2)]
    for workers in (1, 2):
        with (
            open_scorer(broken, workers) as scorer,
            pytest.raises(AudioError, match=r"short\.wav: its length is 10"),
        ):
            list(scorer.score(jobs))


def test_a_process_that_is_ended_is_one_clear_error(task: ScoringTask, table: ScaleTable) -> None:
    jobs = jobs_of(*trials_of(table)) * 200
    with (
        ScoringPool(task, 2) as pool,
        pytest.raises(OptionError, match=r"one of the 2 processes .* give fewer --workers"),
    ):
        for done, _ in enumerate(pool.score(jobs)):
            if done == 0:
                os.kill(next(iter(pool._pool._processes)), signal.SIGKILL)


_SCORE_FOR_EVER = """
import pickle, sys
from speechquant.engines.scorers import ScoringPool

if __name__ == "__main__":
    task, jobs = pickle.load(sys.stdin.buffer)
    with ScoringPool(task, 2) as pool:
        list(pool.score(jobs))
        print(*pool._pool._processes, flush=True)
        while True:
            list(pool.score(jobs))
"""


def is_running(pid: int) -> bool:
    # One that has ended but was not waited for yet is a zombie.
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_processes_end_with_the_one_that_started_them(
    task: ScoringTask, table: ScaleTable, tmp_path: Path
) -> None:
    import pickle

    script = tmp_path / "score.py"
    script.write_text(_SCORE_FOR_EVER)
    process = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    pickle.dump((task, jobs_of(trials_of(table)[0])), process.stdin)
    process.stdin.close()
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2 and all(map(is_running, workers))
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < end
        time.sleep(0.02)
