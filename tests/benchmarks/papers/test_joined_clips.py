from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechquant.benchmarks.papers.joined_clips import (
    JoinedErrors,
    Lot,
    clip_by_clip,
    joined_errors,
    lost_and_repeated,
)
from speechquant.core.manifests import LabelledClip
from speechquant.zoo.corpus import SAMPLE_RATE_HZ

CLIPS = ["call anna at nine", "you are welcome", "what time is it", "stop"]
ALL = " ".join(CLIPS)


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (ALL, (0, 0)),
        ("call anna at nine what time is it stop", (1, 0)),
        ("call anna at nine we will what time is it stop", (0, 0)),  # misheard, not lost
        ("call anna at nine you are welcome what time is it", (1, 0)),
        ("call anna at nine you are welcome you are welcome what time is it stop", (0, 3)),
        ("call anna anna at nine you are welcome what time is it stop", (0, 1)),
        ("call anna at nine you are welcome and what time is it stop", (0, 0)),
    ],
)
def test_what_is_lost_and_what_is_told_twice(heard: str, expected: tuple[int, int]) -> None:
    assert lost_and_repeated(CLIPS, heard) == expected


def test_rates_as_tables_show_them() -> None:
    assert JoinedErrors(0.02, 0.0432, 0, 0).rates == ("2.00 %", "4.32 %", "+2.32")


def test_chunks_of_whole_clips_have_no_seams() -> None:
    seconds = (3, 3, 3, 9, 1)
    clips = tuple(LabelledClip(Path(f"{index}"), text) for index, text in enumerate("abcde"))
    waves = tuple(np.full(length * SAMPLE_RATE_HZ, length, np.float32) for length in seconds)
    lot = Lot(clips, waves, pause_seconds=0.0)
    assert [len(wave) / SAMPLE_RATE_HZ for wave in lot.chunks] == [6, 3, 9, 1]
    assert np.array_equal(np.concatenate(lot.chunks), lot.wave)
    assert clip_by_clip(lot, lambda waves: list("abcdx")[: len(waves)]) == 0.2
    assert joined_errors(lot, 0.2, ["a b", "c", "d", ""]) == JoinedErrors(0.2, 0.2, 1, 0)
    assert joined_errors(lot, 0.2, ["a"]).joined == 0.8
