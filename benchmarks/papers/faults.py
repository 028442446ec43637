"""A calibration with workers, nodes and drivers killed at random moments, beside a quiet one.

`python -m speechquant.benchmarks.papers.faults --runs 10` calibrates the zoo's HuBERT with
Algorithm 1 in one process, in a pool of two and on a Ray cluster of two nodes of this machine. Then
it kills something in each run and compares the tables byte by byte. It needs Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.calibrators.search_log import SEARCH_FILE
from speechquant.exporter.ctc import export
from speechquant.recipes.executors.cluster import ADDRESS_VARIABLE, QUIET
from speechquant.zoo.models import TRAINED_MODELS

_STORE_BYTES = 80 << 20
_LOOK_EVERY_SECONDS = 0.02
_POOL = ("--workers", "2")
_RAY = ("--executor", "ray", "--workers", "2")


@dataclass(frozen=True)
class Calibrations:
    """Runs of one calibration, by the options that say where its jobs run."""

    bundle: Path
    data: str
    clips: int
    folder: Path

    def start(self, name: str, where: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start the command; the same name goes on where a killed one was."""
        command = [
            sys.executable, "-m", "speechquant.pipeline.command", "calibrate", str(self.bundle),
            "--data", self.data, "--limit", str(self.clips), "--out", str(self.table(name)),
            "--search", "exhaustive", "--threads", "1", *where,
        ]  # fmt: skip
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=(self.folder / f"{name}.txt").open("ab")
        )

    def run(self, name: str, where: Sequence[str]) -> float:
        """Run the command to its end and return its seconds."""
        started = time.perf_counter()
        self.end(name, self.start(name, where))
        return time.perf_counter() - started

    def end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end; raises SystemExit, with what was said, where it failed."""
        if process.wait() != 0:
            raise SystemExit((self.folder / f"{name}.txt").read_text(encoding="utf-8"))

    def wait_for(self, name: str, evaluations: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until a run has so many evaluations in its log."""
        log = self.folder / f"{name}.json.work" / SEARCH_FILE
        while process.poll() is None:
            if log.is_file() and log.read_bytes().count(b"\n") >= evaluations:
                return
            time.sleep(_LOOK_EVERY_SECONDS)
        self.end(name, process)

    def table(self, name: str) -> Path:
        """Return the table that a run writes."""
        return self.folder / f"{name}.json"

    def evaluations(self, name: str) -> list[str]:
        """Return the lines of a run's log, in an order of their own."""
        log = self.folder / f"{name}.{SEARCH_FILE}"
        return sorted(log.read_text(encoding="utf-8").splitlines())

    def verdict(self, name: str, quiet: str) -> str:
        """Return what a run's files are beside those of a quiet one."""
        tables = [self.table(each).read_bytes() for each in (name, quiet)]
        logs = [self.evaluations(each) for each in (name, quiet)]
        return f"{_same(*tables)} table, {_same(*logs)} {len(logs[0])} evaluations"


def _same(first: object, second: object) -> str:
    return "the same" if first == second else "ANOTHER"


class Nodes:
    """A Ray cluster of two nodes on this machine."""

    def __init__(self) -> None:
        self._size = {"num_cpus": 1, "object_store_memory": _STORE_BYTES}
        self._cluster: Any = import_module("ray.cluster_utils").Cluster(
            initialize_head=True, head_node_args={"include_dashboard": False, **self._size}
        )
        os.environ[ADDRESS_VARIABLE] = self._cluster.address
        self._second: Any = None
        self.complete()

    def complete(self) -> None:
        """Start the second node where it is gone."""
        self._second = self._second or self._cluster.add_node(wait=True, **self._size)

    def lose_one(self) -> None:
        """Kill the second node, and so its workers."""
        node, self._second = self._second, None
        self._cluster.worker_nodes.remove(node)
        for raylet in node.all_processes["raylet"]:
            raylet.process.kill()
            raylet.process.wait()

    def shutdown(self) -> None:
        """End it."""
        self._cluster.shutdown()


def _processes_below(pid: int, mark: str) -> list[int]:
    """Return the descendants of a process whose command line has `mark` in it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # ended a moment ago
        parents[int(stat.parent.name)] = int(fields[1])
    return [one for one in parents if _is_below(one, pid, parents) and mark in _command_of(one)]


def _is_below(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def main() -> None:
    """Print a row a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--bundle", type=Path, help="a float bundle; the zoo's HuBERT by default")
    parser.add_argument("--data", default="zoo:dev")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(QUIET)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = options.bundle or export(TRAINED_MODELS / "hubert", folder / "float").folder
        runs = Calibrations(bundle, options.data, options.clips, folder)
        sys.stdout.write(f"On {describe_scoring()}; {options.clips} clips of {options.data}.\n")
        nodes = Nodes()
        try:
            _print_runs(runs, nodes, options.runs, random.Random(options.seed))  # noqa: S311
        finally:
            nodes.shutdown()


def _print_runs(runs: Calibrations, nodes: Nodes, count: int, rng: random.Random) -> None:
    print_heading(
        "Runs", "jobs run", "killed", "after evaluations", "seconds", "beside one process"
    )
    quiet = {"one process": (), "a pool of 2": _POOL, "Ray, 2 nodes": _RAY}
    alone = "one-process"
    for where, arguments in quiet.items():
        name = where.replace(" ", "-")
        took = runs.run(name, arguments)
        print_row(where, "nothing", "", f"{took:.1f}", runs.verdict(name, alone))
    evaluations = len(runs.evaluations(alone))
    kinds = [
        ("a pool of 2", "a worker"), ("Ray, 2 nodes", "a worker"),
        ("Ray, 2 nodes", "a node"), ("Ray, 2 nodes", "the driver"), ("a pool of 2", "the driver"),
    ]  # fmt: skip
    for number in range(count):
        where, killed = kinds[number % len(kinds)]
        name, after = f"run-{number}", int(rng.uniform(0.05, 0.8) * evaluations)
        started = time.perf_counter()
        process = runs.start(name, quiet[where])
        runs.wait_for(name, after, process)
        if killed == "a worker":
            os.kill(rng.choice(_workers_of(process, where)), signal.SIGKILL)
        elif killed == "a node":
            nodes.lose_one()
        else:
            process.kill()
            process.wait()
            process = runs.start(name, quiet[where])
        runs.end(name, process)
        took = time.perf_counter() - started
        nodes.complete()
        print_row(where, killed, after, f"{took:.1f}", runs.verdict(name, alone))


def _workers_of(process: subprocess.Popen[bytes], where: str) -> list[int]:
    if where.startswith("Ray"):
        return _processes_below(os.getpid(), "ray::RemoteWorker")
    return _processes_below(process.pid, "spawn_main")


if __name__ == "__main__":
    main()
