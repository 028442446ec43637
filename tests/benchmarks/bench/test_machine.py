from __future__ import annotations

import time

import pytest

from speechquant.benchmarks.bench.machine import integer_instructions, processor_ticks
from speechquant.core.processor import Processor


def test_ticks_of_work_grow_with_work() -> None:
    before = processor_ticks()
    started = time.process_time()
    while time.process_time() - started < 0.2:
        pass
    after = processor_ticks()
    worked, ticks = after[0] - before[0], after[1] - before[1]
    assert 0 < worked <= ticks


@pytest.mark.parametrize(
    ("instructions", "told"),
    [
        (frozenset({"avx2", "avx512_vnni"}), " with VNNI"),
        (frozenset({"avx2"}), " without VNNI"),
        (None, ""),
    ],
)
def test_integer_instructions_are_told_where_they_are_known(
    instructions: frozenset[str] | None, told: str
) -> None:
    assert integer_instructions(Processor("AuthenticAMD", instructions)) == told
