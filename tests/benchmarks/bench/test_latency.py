from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.benchmarks.bench.latency import (
    MOST_WARM_UP,
    Sample,
    measure_latency,
    run_once,
    time_interleaved,
)
from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError, OptionError
from speechquant.engines import open_recognizer


def clockwork(name: str, times: list[int], log: list[str]) -> Callable[[], Sample]:
    """Takes the given times, the last of them for ever."""
    remaining = iter(times)

    def run() -> Sample:
        log.append(name)
        return Sample(1, next(remaining, times[-1]), 2)

    return run


def test_every_round_runs_every_candidate_once_in_changing_order() -> None:
    log: list[str] = []
    names = ["a", "b", "c", "d"]
    found = time_interleaved(
        {name: clockwork(name, [100], log) for name in names}, repeats=12, pause_seconds=0
    )
    assert all(len(runs.samples) == 12 and runs.failure is None for runs in found.values())
    rounds = [log[start : start + 4] for start in range(8, len(log), 4)]
    assert len(rounds) == 12
    assert all(sorted(row) == names for row in rounds)
    assert len({tuple(row) for row in rounds}) > 6


@pytest.mark.parametrize(
    ("times", "runs"),
    [
        ([100, 100], 2),
        ([1000, 500, 480, 470], 3),  # 480 is no 5 % below 500
        ([1000, 500, 250, 120, 120], 5),
        ([2**k for k in range(40, 20, -1)], MOST_WARM_UP),
    ],
)
def test_warm_up_ends_when_it_is_steady(times: list[int], runs: int) -> None:
    found = time_interleaved({"a": clockwork("a", times, [])}, repeats=3, pause_seconds=0)
    assert [sample.network for sample in found["a"].warm_up] == times[:runs]


def test_one_that_fails_is_left_out_from_there_on() -> None:
    log: list[str] = []

    def failing() -> Sample:
        log.append("b")
        if log.count("b") > 4:
            raise RuntimeError("out of luck")
        return Sample(1, 1, 1)

    candidates = {"a": clockwork("a", [100], log), "b": failing}
    found = time_interleaved(candidates, repeats=6, pause_seconds=0)
    assert str(found["b"].failure) == "out of luck"
    assert log.count("b") == 5
    assert len(found["a"].samples) == 6


def test_cell_of_runs() -> None:
    found = time_interleaved({"a": clockwork("a", [9, 7, 5], [])}, repeats=3, pause_seconds=0)
    cell = found["a"].cell(2.0, 4, peak_bytes=77)
    # Three runs to warm up: 9, then 7, then 5, each far below the last, then 5 again.
    assert cell.warm_up == (12, 10, 8, 8)
    assert (cell.seconds, cell.batch, cell.peak_bytes) == (2.0, 4, 77)
    assert (cell.prepare, cell.network, cell.text) == ((1,) * 3, (5,) * 3, (2,) * 3)
    assert cell.whole == (8, 8, 8)
    assert cell.device is None


def test_time_on_a_gpu_is_kept() -> None:
    found = time_interleaved({"a": lambda: Sample(1, 5, 1, 4)}, repeats=3, pause_seconds=0)
    assert found["a"].cell(1.0, 1).device == (4, 4, 4)


def test_parts_of_one_run(tiny_bundle: Bundle, noise: NDArray[np.float32]) -> None:
    with open_recognizer(tiny_bundle, threads=1) as recognizer:
        sample = run_once(recognizer, [noise, noise])
    assert min(sample.prepare, sample.network, sample.text) > 0
    assert sample.whole == sample.prepare + sample.network + sample.text
    assert sample.device is None


def test_measuring_in_this_process(tiny_bundle: Bundle, noise: NDArray[np.float32]) -> None:
    with open_recognizer(tiny_bundle, threads=1) as one, open_recognizer(tiny_bundle) as other:
        found = measure_latency({"one": one, "other": other}, [noise], repeats=3, pause_seconds=0)
        assert found["one"].seconds == 2.0
        assert len(found["other"].network) == 3
        with pytest.raises(AudioError, match="waveform 0 for one: its length"):
            measure_latency({"one": one}, [noise[:10]])
        with pytest.raises(OptionError, match="no waveform"):
            measure_latency({"one": one}, [])
