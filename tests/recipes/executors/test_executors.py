"""Every executor gives the same results, whatever happens to its workers."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_tasks import (
    DIES,
    DIES_ONCE,
    NO_MEMORY_ONCE,
    NOTHING,
    REFUSED,
    SLOW,
    Squares,
    squares,
)
from ray_nodes import two_nodes

from speechquant.core.errors import AudioError, OptionError
from speechquant.recipes.executors import pool, ray_workers
from speechquant.recipes.executors.options import RAY, ExecutorOptions, opened_workers
from speechquant.recipes.executors.task import in_order

__all__ = ["two_nodes"]  # a fixture

HERE = ExecutorOptions()
POOL = ExecutorOptions(workers=2)
CLUSTER = ExecutorOptions(RAY, 2)
PLAIN = [(number, NOTHING) for number in range(40)]
EXPECTED = [number * number + 1000 for number in range(40)]


@pytest.fixture(params=["pool", "cluster"])
def several(request: pytest.FixtureRequest) -> ExecutorOptions:
    if request.param == "cluster":
        request.getfixturevalue("two_nodes")
        return CLUSTER
    return POOL


def results(task: Squares, options: ExecutorOptions, jobs: list[tuple[int, int]]) -> list[int]:
    with opened_workers(task, options) as workers:
        return list(in_order(workers.completed(jobs)))


def test_this_process_does_the_jobs(tmp_path: Path) -> None:
    assert results(squares(tmp_path / "task"), HERE, PLAIN) == EXPECTED


def test_workers_give_what_one_process_gives(tmp_path: Path, several: ExecutorOptions) -> None:
    with opened_workers(squares(tmp_path / "task"), several) as workers:
        assert workers.count == 2
        assert list(in_order(workers.completed(PLAIN))) == EXPECTED
        assert list(workers.completed([])) == []
        assert dict(workers.completed(PLAIN[:3])) == dict(enumerate(EXPECTED[:3]))


def test_jobs_of_workers_that_die_run_elsewhere(
    tmp_path: Path, several: ExecutorOptions, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = list(PLAIN)
    jobs[3], jobs[20] = (3, DIES_ONCE), (20, NO_MEMORY_ONCE)
    assert results(squares(tmp_path / "task"), several, jobs) == EXPECTED
    assert sum("run" in record.getMessage() for record in caplog.records) >= 2


def test_a_worker_that_is_killed_from_outside_costs_nothing(
    tmp_path: Path, several: ExecutorOptions
) -> None:
    jobs = [(number, SLOW) for number in range(40)]
    with opened_workers(squares(tmp_path / "task"), several) as workers:
        found: dict[int, int] = {}
        for place, result in workers.completed(jobs):
            found[place] = result
            if len(found) == 5:
                known: Any = workers  # the processes are no part of the protocol
                os.kill(known.pids[0], signal.SIGKILL)
    assert [found[place] for place in range(40)] == EXPECTED


def test_processes_that_wait_for_a_lock_of_a_killed_one_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PATIENCE_SECONDS", 0.5)
    with pool.ProcessPool(squares(tmp_path / "task"), 2) as workers:
        assert list(in_order(workers.completed(PLAIN))) == EXPECTED
        queue: Any = workers._pool._call_queue
        pids = workers.pids
        # As a process that is killed while it takes a job leaves it; one of the two may have it.
        queue._rlock.acquire(timeout=0.5)
        queue.put = queue.put_nowait = lambda *_: None
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_job_that_costs_every_worker_is_one_clear_error(
    tmp_path: Path, several: ExecutorOptions
) -> None:
    with pytest.raises(OptionError, match=r"again and again.*fewer --workers"):
        results(squares(tmp_path / "task"), several, [*PLAIN[:5], (5, DIES)])


def test_a_refusal_is_what_it_is_in_this_process(tmp_path: Path, several: ExecutorOptions) -> None:
    task = squares(tmp_path / "task")
    for options in (HERE, several):
        with pytest.raises(AudioError, match=r"^1: cannot be used$"):
            results(task, options, [(0, NOTHING), (1, REFUSED)])


def test_no_more_jobs_are_in_hand_than_workers_can_take(
    tmp_path: Path, several: ExecutorOptions
) -> None:
    jobs = [(number, DIES if number > 30 else NOTHING) for number in range(40)]
    with opened_workers(squares(tmp_path / "task"), several) as workers:
        for done, _ in enumerate(workers.completed(jobs)):
            if done == 20:
                break  # none of the last ones was handed over
        assert dict(workers.completed(PLAIN[:1])) == {0: 1000}


def test_a_node_that_goes_costs_nothing(tmp_path: Path, two_nodes: Any) -> None:
    jobs = [(number, SLOW) for number in range(40)]
    found: dict[int, int] = {}
    with opened_workers(squares(tmp_path / "task"), CLUSTER) as workers:
        for place, result in workers.completed(jobs):
            found[place] = result
            if len(found) == 5:
                two_nodes.lose_one()
    two_nodes.add_one()
    assert [found[place] for place in range(40)] == EXPECTED


def test_a_folder_and_audio_that_a_machine_lacks_are_shipped_once(
    tmp_path: Path, two_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The workers run in another folder, so that they do not find what is named from this one.
    monkeypatch.chdir(tmp_path)
    audio = Path("clip.wav")
    audio.write_text("7")
    task = squares(Path("task"), [audio])
    before = two_nodes.cached()
    assert results(task, CLUSTER, [(2, NOTHING), (3, NOTHING)]) == [1011, 1016]
    digest = hashlib.sha256(Path("task/bundle.json").read_bytes()).hexdigest()
    shipped = {digest, f"{hashlib.sha256(b'7').hexdigest()}.wav"}
    assert set(two_nodes.cached()) - set(before) == shipped
    assert (two_nodes.cache / "shipped" / digest / "added").read_text() == "1000"
    # Once there, nothing is sent again.
    monkeypatch.setattr(ray_workers, "shipped_folder", None)
    assert results(task, CLUSTER, [(2, NOTHING)]) == [1011]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from speechquant.recipes.executors import cluster

    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    yield


def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path, without_ray: None) -> None:
    with pytest.raises(ImportError, match=r"pip install 'speechquant\[cluster\]'"):
        results(squares(tmp_path / "task"), CLUSTER, PLAIN)


@pytest.mark.parametrize("name", ["slurm", "ray://", "processes://x"])
def test_an_executor_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"choose processes, ray or ray://HOST:PORT"):
        ExecutorOptions(name)
