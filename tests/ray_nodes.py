"""A Ray cluster of two nodes on this machine, the smallest that there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_STORE_BYTES = 80 << 20  # Ray takes no less


class Nodes:
    def __init__(self, cache: Path) -> None:
        from ray.cluster_utils import Cluster

        self.cache = cache
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"include_dashboard": False, **self._size()}
        )
        self.address: str = self._cluster.address
        self._added: list[Any] = []
        self.add_one()

    @staticmethod
    def _size() -> dict[str, int]:
        return {"num_cpus": 1, "object_store_memory": _STORE_BYTES}

    def add_one(self) -> None:
        self._added.append(self._cluster.add_node(wait=True, **self._size()))

    def lose_one(self) -> None:
        """The one that is not the head; killed, not told to end: its workers end with it."""
        node = self._added.pop()
        self._cluster.worker_nodes.remove(node)
        for raylet in node.all_processes["raylet"]:
            raylet.process.kill()
            raylet.process.wait()

    def worker_pids(self) -> list[int]:
        """The processes of this cluster that do jobs."""
        import psutil

        return [
            child.pid
            for node in self._cluster.list_all_nodes()
            for raylet in node.all_processes["raylet"]
            for child in psutil.Process(raylet.process.pid).children()
            if "RemoteWorker" in " ".join(child.cmdline())
        ]

    def cached(self) -> list[str]:
        """What was shipped to this machine."""
        return sorted(path.name for path in self.cache.glob("shipped*/*"))

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    ray = pytest.importorskip("ray")
    from speechquant.recipes.executors import cluster

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # Its processes take these over: the tasks of tests are modules of this folder.
        own = {"SPEECHQUANT_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parent)}
        for name, value in {**cluster.QUIET, **own}.items():
            patch.setenv(name, value)
        nodes = Nodes(cache)
        cluster.connected(nodes.address, 2)
        yield nodes
        ray.shutdown()
        nodes.shutdown()
