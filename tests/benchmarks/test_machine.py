from __future__ import annotations

import time

from speechquant.benchmarks.machine import processor_ticks


def test_ticks_of_work_grow_with_work() -> None:
    before = processor_ticks()
    started = time.process_time()
    while time.process_time() - started < 0.2:
        pass
    after = processor_ticks()
    worked, ticks = after[0] - before[0], after[1] - before[1]
    assert 0 < worked <= ticks
