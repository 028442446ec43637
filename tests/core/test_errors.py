from __future__ import annotations

from speechquant.core.errors import choice_among


def test_the_nearest_name_is_offered_before_all() -> None:
    known = {"max": 1, "stablequant": 2}
    assert choice_among("stablequan", known) == "did you mean stablequant? choose max, stablequant"
    assert choice_among("zzz", known) == "choose max, stablequant"
