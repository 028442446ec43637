from __future__ import annotations

import pytest

from speechquant.benchmarks.papers.scale import HUBERT_LARGE, Costs, simulate


def costs(driver: float = 0.0, bundle_bytes: float = 0.0) -> Costs:
    return Costs(1.0, 0.0, driver, bundle_bytes, 1.0, 1.0, workers_per_node=1)


def test_even_jobs_without_costs_scale_as_workers_do() -> None:
    clips = [2.0] * 8
    assert HUBERT_LARGE.layers == 34
    for workers in (1, 2, 8):
        found = simulate(costs(), clips, (1, 3), workers)
        assert found.seconds == pytest.approx(4 * 16 / workers)
        assert found.tail == pytest.approx(0.0)


def test_a_stage_waits_for_its_longest_job_and_for_the_driver() -> None:
    assert simulate(costs(), [1.0, 5.0], (1, 1), 2).seconds == pytest.approx(10.0)
    # A job of one second, and two of the driver for each: it hands over one after the other.
    found = simulate(costs(driver=2.0), [1.0] * 4, (1,), 4)
    assert found.seconds == pytest.approx(4 * 2 + 1)
    assert found.driver_busy == pytest.approx(8.0)


def test_workers_that_come_late_hold_nobody_up() -> None:
    # The second node has its bundle after 20 s to send and 10 to write, and the jobs are done then.
    assert simulate(costs(bundle_bytes=10.0), [1.0] * 3, (1,), 2).seconds == pytest.approx(23.0)
