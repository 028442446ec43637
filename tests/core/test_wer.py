from __future__ import annotations

import math

import numpy as np
import pytest

from speechquant.core.wer import (
    DifferenceInterval,
    EditCounts,
    ErrorRate,
    difference_interval,
    most_hidden,
    rate_interval,
    score_cer,
    score_wer,
)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "substitutions", "insertions", "deletions"),
    [
        ("the cat sat", "the cat sat", 0, 0, 0),
        ("the cat sat", "the bat sat", 1, 0, 0),
        ("the cat sat", "the cat", 0, 0, 1),
        ("the cat sat", "the big cat sat", 0, 1, 0),
        ("the cat sat", "", 0, 0, 3),
        ("", "hello there", 0, 2, 0),
        ("a b c d", "b c d e", 0, 1, 1),
        ("one  two", " one two ", 0, 0, 0),
    ],
)
def test_word_edits(
    reference: str, hypothesis: str, substitutions: int, insertions: int, deletions: int
) -> None:
    (clip,) = score_wer([reference], [hypothesis]).clips
    length = len(reference.split())
    assert clip == EditCounts(substitutions, insertions, deletions, length)


def test_character_edits_count_the_space() -> None:
    rate = score_cer(["ab cd"], ["abcd"])
    assert (rate.deletions, rate.reference_length) == (1, 5)


def test_rate_is_errors_over_all_words_not_a_mean_of_rates() -> None:
    rate = score_wer(["a b c d e f g h i", "x"], ["a b c d e f g h i", "y"])
    assert rate.errors == 1
    assert rate.rate == pytest.approx(1 / 10)


def test_rate_of_nothing_is_nan() -> None:
    assert math.isnan(score_wer([""], ["word"]).rate)


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_wer(["a", "b"], ["a"])


def _rate(errors: list[int], words: int) -> ErrorRate:
    return ErrorRate(tuple(EditCounts(count, 0, 0, words) for count in errors))


def test_interval_of_equal_results_is_zero() -> None:
    rate = _rate([0, 3, 1, 2], 10)
    interval = difference_interval(rate, rate)
    assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_interval_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    first = rng.poisson(1.0, 2_000)
    second = first + rng.binomial(1, 0.1, 2_000)
    interval = difference_interval(_rate(first.tolist(), 10), _rate(second.tolist(), 10))
    change = (second - first) / 10
    half_width = 1.96 * change.std() / math.sqrt(len(change))
    assert interval.difference == pytest.approx(change.mean())
    assert interval.low == pytest.approx(change.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(change.mean() + half_width, abs=0.1 * half_width)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        base = rng.poisson(1.0, 200)
        worse = base + rng.binomial(1, 0.1, 200)
        interval = difference_interval(
            _rate(base.tolist(), 10), _rate(worse.tolist(), 10), resamples=500
        )
        covered += interval.low <= 0.01 <= interval.high
    # 190 expected; six standard deviations of a binomial, and a bootstrap is a little narrow.
    assert 170 <= covered <= 200


def test_interval_of_different_references_is_refused() -> None:
    with pytest.raises(ValueError, match="same"):
        difference_interval(_rate([1], 10), _rate([1], 11))


def test_clips_without_a_difference_may_hide_one_by_the_rule_of_three() -> None:
    rate = _rate([1] * 8, 12)
    interval = difference_interval(rate, rate)
    assert interval.is_of_nothing
    assert not interval.is_certain
    # 0.3123 of the clips, missed by 8 draws with a probability of 0.05, with an error of 12 words
    share = most_hidden(interval, rate) * 12
    assert (1.0 - share) ** 8 == pytest.approx(0.05)
    assert most_hidden(interval, _rate([1] * 800, 12)) == pytest.approx(3 / 9600, rel=0.01)


def test_an_interval_around_zero_hides_its_upper_end() -> None:
    rate = _rate([1] * 8, 12)
    assert most_hidden(DifferenceInterval(0.001, -0.01, 0.0265, 0.95), rate) == 0.0265
    assert most_hidden(DifferenceInterval(-0.02, -0.03, -0.01, 0.95), rate) == 0.0
    assert DifferenceInterval(-0.02, -0.03, -0.01, 0.95).is_certain


def test_the_interval_of_a_rate_holds_it() -> None:
    interval = rate_interval(_rate([0, 3, 1, 2, 0, 1], 10))
    assert interval.difference == pytest.approx(7 / 60)
    assert 0.0 < interval.low < 7 / 60 < interval.high
