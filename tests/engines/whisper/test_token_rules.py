from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines.whisper.token_rules import TokenRules, log_sum_exp

# 20 texts, end, start, no speech, no timestamps, 11 times.
END, START, NO_TIMESTAMPS, FIRST, VOCABULARY = 20, 21, 23, 24, 35
SPEC = GenerationSpec(
    START,
    END,
    max_tokens=64,
    no_timestamps=NO_TIMESTAMPS,
    suppressed=(3, 4),
    suppressed_first=(1, END),
    latest_first_timestamp=6,
)


def allowed(scores: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in scores]


def test_what_is_suppressed_always_and_at_first() -> None:
    rules = TokenRules(SPEC, timestamps=False)
    scores = np.zeros((2, VOCABULARY), np.float32)
    everything = set(range(VOCABULARY))
    first, later = (rules.apply(scores, [[], []], is_first=is_first) for is_first in (True, False))
    assert [set(row) for row in allowed(first)] == [everything - {1, 3, 4, END}] * 2
    assert [set(row) for row in allowed(later)] == [everything - {3, 4}] * 2
    assert np.all(scores == 0)


def drawn_texts(rng: np.random.Generator) -> list[int]:
    """Times in pairs with texts between them, ended anywhere, as a decoder writes them."""
    row: list[int] = []
    time = FIRST
    for _ in range(rng.integers(0, 4)):
        row += [time, *rng.integers(5, END, rng.integers(1, 4)).tolist()]
        time = min(VOCABULARY - 2, time + int(rng.integers(1, 4)))
        row.append(time)
    return row[: rng.integers(0, len(row) + 1)] if row else row


@pytest.mark.parametrize("seed", range(20))
def test_timestamps_as_transformers_has_them(seed: int) -> None:
    import torch
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    rng = np.random.default_rng(seed)
    config = SimpleNamespace(
        no_timestamps_token_id=NO_TIMESTAMPS,
        eos_token_id=END,
        bos_token_id=END,
        max_initial_timestamp_index=6,
    )
    rules = TokenRules(
        GenerationSpec(START, END, 64, NO_TIMESTAMPS, latest_first_timestamp=6), timestamps=True
    )
    for _ in range(20):
        heard = drawn_texts(rng)
        # Sometimes the times together outweigh every text, sometimes not.
        scores = rng.normal(0, 2, (1, VOCABULARY)).astype(np.float32)
        scores[:, FIRST:] -= rng.uniform(0, 6)
        reference = WhisperTimeStampLogitsProcessor(config, begin_index=1)  # type: ignore[arg-type]
        expected = reference(torch.tensor([[START, *heard]]), torch.from_numpy(scores)).numpy()
        found = rules.apply(scores, [heard], is_first=not heard)
        assert allowed(found) == allowed(expected)
        assert np.array_equal(found[np.isfinite(found)], expected[np.isfinite(expected)])


def test_log_sum_exp_against_float64() -> None:
    found = log_sum_exp(np.array([1000.0, 1000.0, -np.inf], np.float32))
    assert found == pytest.approx(1000 + np.log(2), abs=1e-9)
    rows = np.random.default_rng(0).normal(0, 4, (3, 51_865)).astype(np.float32)
    expected = np.log(np.exp(rows.astype(np.float64)).sum(axis=-1))
    assert log_sum_exp(rows) == pytest.approx(expected, abs=1e-6)
