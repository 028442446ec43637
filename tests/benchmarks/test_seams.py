from __future__ import annotations

import pytest

from speechquant.benchmarks.seams import Seams, lost_and_repeated

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
    assert Seams(0.02, 0.0432, 0, 0).rates == ("2.00 %", "4.32 %", "+2.32")
