from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.benchmarks.papers.calibration_cost import (
    Cost,
    PassTimes,
    cost_of_collecting,
    cost_of_peer,
    peak_gib,
    print_cost,
    run_alone,
    time_passes,
    write_noise,
)
from speechquant.core.bundles import Bundle

GIB = 1 << 30


def test_ratio_counts_both_parts_of_collecting() -> None:
    assert PassTimes(plain=20.0, showing=22.0, counting=3.0).ratio == 1.25


def test_noise_is_seeded_and_of_the_length_asked(tmp_path: Path) -> None:
    first, second = write_noise(tmp_path, 2, seconds=0.5)
    waves = [soundfile.read(clip.path)[0] for clip in (first, second)]
    assert [wave.size for wave in waves] == [8000, 8000]
    assert not np.array_equal(*waves)
    assert waves[0].std() == pytest.approx(0.1, rel=0.05)
    write_noise(tmp_path, 1, seconds=0.5)
    np.testing.assert_array_equal(soundfile.read(first.path)[0], waves[0])


def test_every_pass_has_its_times(tiny_bundle: Bundle, tmp_path: Path) -> None:
    passes = time_passes(tiny_bundle, write_noise(tmp_path, 2, seconds=0.5), repeats=3)
    assert len(passes) == 3
    assert all(min(times.plain, times.showing, times.counting) > 0 for times in passes)


def test_collecting_and_the_peer_see_the_tensors(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = write_noise(tmp_path, 2, seconds=0.5)
    assert cost_of_collecting(tiny_bundle, clips).tensors == len(tiny_bundle.spec.layers)
    assert cost_of_peer(tiny_bundle, clips, 1).tensors > len(tiny_bundle.spec.layers)
    assert capsys.readouterr().out == ""


def hold(gib: float) -> float:
    np.ones(int(gib * GIB), np.int8)
    return peak_gib()


def test_a_process_of_its_own_has_a_peak_and_a_limit_of_its_own() -> None:
    held = np.ones(GIB // 2, np.int8)
    assert 0.25 < run_alone(hold, 0.25, limit_gib=1) < 0.25 + held.nbytes / GIB
    with pytest.raises(MemoryError):
        run_alone(hold, 2, limit_gib=1)


def test_running_out_of_memory_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_cost("peer", 20, Cost(212, None, 9.96))
    assert capsys.readouterr().out == "| peer | 212 | 20 | ran out of 10 GiB | 9.96 GiB |\n"
