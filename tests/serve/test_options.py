from __future__ import annotations

import math

import pytest

from speechquant.core.errors import OptionError
from speechquant.serve.options import Batching, Limits


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, -1.0])
def test_limits_are_finite(value: float) -> None:
    for name in ("megabytes", "audio_seconds"):
        with pytest.raises(OptionError, match="finite and above 0"):
            Limits(**{name: value})


@pytest.mark.parametrize("wait_ms", [math.inf, math.nan, 1e14, -1.0])
def test_a_wait_is_no_longer_than_a_minute(wait_ms: float) -> None:
    with pytest.raises(OptionError, match="a wait 0 to 60000 ms"):
        Batching(wait_ms=wait_ms)
