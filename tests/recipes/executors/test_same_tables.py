"""Statistics, search and evaluation come to the same bytes wherever their jobs ran."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ray_nodes import two_nodes

from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.search_log import read_search_log
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.engines import open_recognizer
from speechquant.recipes.calibrate import CalibrationRequest
from speechquant.recipes.data import ClipList
from speechquant.recipes.evaluate import Listening, evaluate_over
from speechquant.recipes.executors.options import RAY, ExecutorOptions
from speechquant.recipes.table_files import TableFiles, write_calibration

__all__ = ["two_nodes"]  # a fixture

HERE = ExecutorOptions()
SEVERAL = {"pool": ExecutorOptions(workers=2), "cluster": ExecutorOptions(RAY, 2)}
RATE_HZ = 16_000
CLIPS = 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> list[LabelledClip]:
    """Noise; the texts are what the float model hears, so that rounding costs words."""
    folder = tmp_path_factory.mktemp("clips")
    rng, found = np.random.default_rng(0), []
    with open_recognizer(tiny_bundle, threads=1) as recognizer:
        for index in range(CLIPS):
            wave = rng.standard_normal(6000 + 1700 * index).astype(np.float32) * 0.1
            path = folder / f"{index}.wav"
            soundfile.write(path, wave, RATE_HZ, subtype="FLOAT")
            found.append(LabelledClip(path, f"a {recognizer.transcribe([wave])[0]}"))
    return found


def calibration(bundle: Bundle, clips: list[LabelledClip], executor: ExecutorOptions) -> Any:
    search = SearchOptions("exhaustive")
    return CalibrationRequest(
        bundle, ClipList(tuple(clips)), search=search, executor=executor, threads=1
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, clips: Any) -> TableFiles:
    files = TableFiles(tmp_path_factory.mktemp("alone") / "scales.json")
    write_calibration(calibration(tiny_bundle, clips, HERE), files)
    return files


def same(files: TableFiles, alone: TableFiles) -> bool:
    logs = [read_search_log(each.search_log) for each in (files, alone)]
    lines = [each.search_log.read_text().count("\n") for each in (files, alone)]
    same_table = files.scales.read_bytes() == alone.scales.read_bytes()
    # Every evaluation is there, and there once.
    return same_table and logs[0] == logs[1] and lines[0] == lines[1] == len(logs[0])


def ready(request: pytest.FixtureRequest, name: str) -> ExecutorOptions:
    if name == "cluster":
        request.getfixturevalue("two_nodes")
    return SEVERAL[name]


@pytest.mark.parametrize("name", SEVERAL)
def test_several_workers_come_to_the_same_bytes(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    alone: TableFiles,
    tmp_path: Path,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    executor = ready(request, name)
    files = TableFiles(tmp_path / "scales.json")
    write_calibration(calibration(tiny_bundle, clips, executor), files)
    assert same(files, alone)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_killed_worker_changes_no_byte(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    alone: TableFiles,
    tmp_path: Path,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    executor = ready(request, name)
    killed: list[int] = []

    @contextmanager
    def progress(what: str) -> Iterator[OnStep]:
        def on_step(done: float, total: int) -> None:
            if what == "searching" and done in (20, 90):
                killed.append(one_worker(name, request))
                os.kill(killed[-1], signal.SIGKILL)

        yield on_step

    files = TableFiles(tmp_path / "scales.json")
    write_calibration(calibration(tiny_bundle, clips, executor), files, progress)
    assert len(killed) == 2
    assert same(files, alone)


def one_worker(name: str, request: pytest.FixtureRequest) -> int:
    if name == "pool":
        return int(next(iter(active_children())).pid or 0)
    nodes, ends = request.getfixturevalue("two_nodes"), time.monotonic() + 60
    while time.monotonic() < ends:  # one that was killed before may not have a successor yet
        if pids := nodes.worker_pids():
            return int(pids[0])
        time.sleep(0.1)
    pytest.fail("no worker of the cluster started within a minute")


@pytest.mark.parametrize("name", SEVERAL)
def test_an_evaluation_counts_the_same(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    executor = ready(request, name)
    module = sys.modules[evaluate_over.__module__]  # recipes.evaluate is a function too
    monkeypatch.setattr(module, "_CLIPS_AT_ONCE", 2)
    task = Listening(tiny_bundle.folder, tuple(clips), threads=1)
    steps: list[float] = []
    here = evaluate_over(task, HERE)
    spread = evaluate_over(task, executor, on_step=lambda done, total: steps.append(done))
    assert spread.clips == here.clips
    assert (spread.words, spread.characters) == (here.words, here.characters)
    assert spread.audio_seconds == here.audio_seconds
    assert (spread.workers, spread.provider) == (2, "cpu")
    assert here.real_time_factor is not None and spread.real_time_factor is None
    assert steps[-1] == CLIPS


_CALIBRATE = """
import pickle, sys
from speechquant.recipes.table_files import write_calibration

if __name__ == "__main__":
    write_calibration(*pickle.load(sys.stdin.buffer))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("name", SEVERAL)
def test_a_killed_driver_goes_on_with_nothing_evaluated_twice(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    alone: TableFiles,
    tmp_path: Path,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    executor = ready(request, name)
    script = tmp_path / "calibrate.py"
    script.write_text(_CALIBRATE)
    files = TableFiles(tmp_path / "scales.json")
    log = tmp_path / "scales.json.work" / "search.jsonl"
    environment = dict(os.environ)
    if name == "cluster":
        environment["RAY_ADDRESS"] = request.getfixturevalue("two_nodes").address
    asked_for = calibration(tiny_bundle, clips, executor)
    process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    with process.stdin as stdin:
        pickle.dump((asked_for, files), stdin)
    end = time.monotonic() + 120
    while not log.is_file() or log.read_bytes().count(b"\n") < 40:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = log.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    write_calibration(asked_for, files)
    assert same(files, alone)
    assert files.search_log.read_bytes().startswith(whole)
