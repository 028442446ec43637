"""How Algorithm 1 scales over workers: a simulation from measured costs.

`python -m speechquant.benchmarks.papers.scale` measures the costs of jobs on the zoo's HuBERT and
simulates HuBERT-Large on 5.4 hours, as long as LibriSpeech's dev-clean. Every cost is an option.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.job_costs import (
    HandingOver,
    handing_over,
    log_seconds,
    receiving_bytes_per_second,
    work_of,
)
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.core.audio import audio_seconds
from speechquant.core.data_sets.read import read_data_set
from speechquant.exporter.ctc import export
from speechquant.recipes.executors.options import RAY, ExecutorOptions
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import TRAINED_MODELS

_MODEL = "hubert"
_SAMPLE_RATE_HZ, _FRAMES_PER_SECOND = 16_000, 50
_PERCENTS = 51
_MEASURED_CLIPS = 12
_SEED = 0


@dataclass(frozen=True)
class Shape:
    """The sizes of a HuBERT, from its config.json."""

    hidden: int
    blocks: int
    inner: int
    channels: Sequence[int]
    kernels: Sequence[int]
    strides: Sequence[int]

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """Return the shape of a checkpoint."""
        return cls(
            config["hidden_size"],
            config["num_hidden_layers"],
            config["intermediate_size"],
            config["conv_dim"],
            config.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2)),
            config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2)),
        )

    @property
    def layers(self) -> int:
        """The layers that stage 1 tries: convolutions, projection, positions, blocks, head."""
        return len(self.channels) + 2 + self.blocks + 1

    @property
    def block_parameters(self) -> int:
        """The weights of all blocks."""
        return self.blocks * (4 * self.hidden**2 + 2 * self.hidden * self.inner)

    @property
    def products_per_second(self) -> float:
        """Multiplications of a second of audio, attention's own and the positions left out."""
        products, rate, inputs = 0.0, float(_SAMPLE_RATE_HZ), 1
        for channels, kernel, stride in zip(self.channels, self.kernels, self.strides, strict=True):
            rate /= stride
            products += rate * inputs * channels * kernel
            inputs = channels
        return products + _FRAMES_PER_SECOND * self.block_parameters


HUBERT_LARGE = Shape(1024, 24, 4096, (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
_LARGE_BYTES = 1_262_000_000  # 315.5 million weights in float


@dataclass(frozen=True)
class Costs:
    """Seconds, unless the name says otherwise."""

    per_audio_second: float
    opening: float
    driver: float
    bundle_bytes: float
    receiving_bytes_per_second: float
    network_bytes_per_second: float
    workers_per_node: int

    def first_job(self, worker: int) -> float:
        """When a worker is ready: the driver's line sends the bundle to one node after another."""
        node = worker // self.workers_per_node
        sent = (node + 1) * self.bundle_bytes / self.network_bytes_per_second
        return sent + self.bundle_bytes / self.receiving_bytes_per_second + self.opening


@dataclass(frozen=True)
class Outcome:
    """Seconds in all, of the driver's work, and that a worker waits at the ends of stages."""

    seconds: float
    driver_busy: float
    tail: float


def simulate(costs: Costs, clips: Sequence[float], stages: Sequence[int], workers: int) -> Outcome:
    """Return how long stages of so many trials take on `workers`, each over all clips.

    A stage begins when the one before it is done. The driver hands over one job at a time, and to
    whoever is free first.
    """
    free = [costs.first_job(worker) if workers > 1 else costs.opening for worker in range(workers)]
    heapq.heapify(free)
    driver = busy = tail = now = end = 0.0
    for trials in stages:
        for _ in range(trials):
            for seconds in clips:
                driver = max(driver, free[0] if workers == 1 else 0.0, now) + costs.driver
                busy += costs.driver
                done = max(free[0], driver, now) + seconds * costs.per_audio_second
                heapq.heapreplace(free, done)
                end = max(end, done)
        # A worker that is ready later than that did nothing in this stage.
        tail += sum(max(end - each, 0.0) for each in free) / workers
        now = end
    return Outcome(now, busy, tail)


def lengths_like_dev_clean(hours: float, clips: int) -> list[float]:
    """Return seconds of clips: log-normal between 1.4 and 33 s, so many hours in all."""
    rng = random.Random(_SEED)  # noqa: S311 - no secret, and the same at every start
    drawn = [min(max(rng.lognormvariate(1.8, 0.6), 1.4), 33.0) for _ in range(clips)]
    return [3600 * hours * seconds / sum(drawn) for seconds in drawn]


def main() -> None:
    """Print the costs and the hours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=float, help="seconds of a trial for a second of audio")
    parser.add_argument("--opening", type=float, help="seconds until a worker's sessions are open")
    parser.add_argument("--driver", type=float, help="seconds of the driver for a job")
    parser.add_argument("--log", type=float, help="seconds of a line in the search log")
    parser.add_argument("--receiving", type=float, help="bytes a second that a node writes, checks")
    parser.add_argument("--network", type=float, default=1.25e8, help="bytes a second, of 1 Gbit/s")
    parser.add_argument("--bundle-bytes", type=float, default=_LARGE_BYTES)
    parser.add_argument("--workers-per-node", type=int, default=8)
    parser.add_argument("--hours", type=float, default=5.4)
    parser.add_argument("--clips", type=int, default=2703)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        costs = _measured(options, Path(folder))
    clips = lengths_like_dev_clean(options.hours, options.clips)
    stages = (1 + HUBERT_LARGE.layers, _PERCENTS)
    _print_hours(costs, clips, stages, options.workers)


def _measured(options: argparse.Namespace, folder: Path) -> Costs:
    """Return the costs, those that were not given measured on the small model."""
    bundle = export(TRAINED_MODELS / _MODEL, folder / "float", name=f"zoo:{_MODEL}")
    config = json.loads((TRAINED_MODELS / _MODEL / "config.json").read_text(encoding="utf-8"))
    small = Shape.of(config)
    clips = read_data_set(corpus_manifest("dev"))[:_MEASURED_CLIPS]
    work = work_of(bundle, clips, [audio_seconds(clip.path) for clip in clips])
    by_products = HUBERT_LARGE.products_per_second / small.products_per_second
    by_size = options.bundle_bytes / bundle.size_bytes
    pool, ray = (
        handing_over(bundle, executor)
        for executor in (ExecutorOptions(workers=2), ExecutorOptions(RAY, 2))
    )
    log = options.log or log_seconds()
    costs = Costs(
        per_audio_second=options.job or work.per_audio_second * by_products,
        opening=options.opening or work.opening * by_size,
        driver=(options.driver or ray.driver) + log,
        bundle_bytes=options.bundle_bytes,
        receiving_bytes_per_second=options.receiving or receiving_bytes_per_second(),
        network_bytes_per_second=options.network,
        workers_per_node=options.workers_per_node,
    )
    sys.stdout.write(f"On {describe_scoring()}.\n")
    _print_handing_over(pool, ray)
    print_heading("Costs", "what", "zoo:hubert", "HuBERT-Large")
    print_row(
        "a trial, s for 1 s of audio on 1 core",
        f"{work.per_audio_second:.4f}",
        f"{costs.per_audio_second:.3f}",
    )
    print_row("opening both sessions, s", f"{work.opening:.2f}", f"{costs.opening:.1f}")
    print_row("bundle, MB", f"{bundle.size_bytes / 1e6:.0f}", f"{costs.bundle_bytes / 1e6:.0f}")
    print_row("a line of the log, ms", f"{1e3 * log:.3f}", f"{1e3 * log:.3f}")
    received = f"{costs.receiving_bytes_per_second / 1e6:.0f}"
    print_row("writing and checking what comes in, MB/s", received, received)
    return costs


def _print_handing_over(pool: HandingOver, ray: HandingOver) -> None:
    print_heading("A job that does nothing", "what", "pool of 2", "Ray, 2 workers")
    for what, factor, name in (
        ("start of the workers, s", 1.0, "start"),
        ("there and back alone, ms", 1e3, "round_trip"),
        ("one of many, ms", 1e3, "driver"),
    ):
        print_row(what, *(f"{factor * getattr(each, name):.2f}" for each in (pool, ray)))


def _print_hours(
    costs: Costs, clips: Sequence[float], stages: Sequence[int], workers: Sequence[int]
) -> None:
    jobs = sum(stages) * len(clips)
    alone = simulate(costs, clips, stages, 1).seconds
    print_heading(
        f"Algorithm 1: {sum(stages)} trials on {len(clips)} clips, {jobs:,} jobs",
        "workers", "hours", "times faster", "of each worker used, %", "driver busy, %", "tails, s",
    )  # fmt: skip
    for count in workers:
        found = simulate(costs, clips, stages, count)
        faster = alone / found.seconds
        print_row(
            count,
            f"{found.seconds / 3600:.2f}",
            f"{faster:.1f}",
            f"{100 * faster / count:.0f}",
            f"{100 * found.driver_busy / found.seconds:.1f}",
            f"{found.tail:.0f}",
        )
    mean_job = costs.per_audio_second * sum(clips) / len(clips)
    sys.stdout.write(
        f"\nA job takes {mean_job:.2f} s on average and {1e3 * costs.driver:.2f} ms of the driver: "
        f"{math.floor(mean_job / costs.driver):,} workers keep it busy all the time. "
        f"The last of {workers[-1]:,} workers has its bundle after "
        f"{costs.first_job(workers[-1] - 1):.0f} s.\n"
    )


if __name__ == "__main__":
    main()
