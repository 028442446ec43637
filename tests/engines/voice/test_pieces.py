from __future__ import annotations

import numpy as np
import pytest

from speechquant.engines.voice.pieces import Piece, Span, pieces_of, voices_in
from speechquant.engines.voice.silero import FRAME_SAMPLES, SAMPLE_RATE_HZ

RATE = SAMPLE_RATE_HZ
MOST = 30 * RATE
FRAMES_PER_SECOND = RATE / FRAME_SAMPLES


def probabilities(*stretches: tuple[float, float]) -> np.ndarray:
    """Probabilities that follow one another: (seconds, probability)."""
    return np.concatenate(
        [np.full(round(seconds * FRAMES_PER_SECOND), p, np.float32) for seconds, p in stretches]
    )


def seconds_of(spans: list[Span]) -> list[tuple[float, float]]:
    return [(round(one.start / RATE, 1), round(one.end / RATE, 1)) for one in spans]


@pytest.mark.parametrize(
    ("stretches", "voices"),
    [
        ([(5, 0.01)], []),
        ([(1, 0.0), (2, 0.9), (1, 0.0)], [(1.0, 3.0)]),
        # Once a voice is there, less than what begins one goes on with it.
        ([(1, 0.9), (1, 0.4), (1, 0.0)], [(0.0, 2.0)]),
        ([(1, 0.4), (1, 0.9), (1, 0.3)], [(1.0, 2.0)]),
        # A click is no voice, and a breath no pause.
        ([(1, 0.0), (0.1, 0.9), (1, 0.0)], []),
        ([(1, 0.9), (0.06, 0.0), (1, 0.9)], [(0.0, 2.0)]),
        ([(1, 0.9), (0.5, 0.0), (1, 0.9)], [(0.0, 1.0), (1.5, 2.5)]),
    ],
)
def test_where_a_voice_is(
    stretches: list[tuple[float, float]], voices: list[tuple[float, float]]
) -> None:
    found = voices_in(probabilities(*stretches), MOST)
    assert len(found) == len(voices)
    assert np.ravel(seconds_of(found)) == pytest.approx(np.ravel(voices), abs=0.11)


def test_a_voice_without_a_pause_is_cut_where_it_is_least_likely() -> None:
    found = voices_in(probabilities((25, 0.9), (0.1, 0.6), (40, 0.9)), MOST)
    assert [one.start for one in found[1:]] == [one.end for one in found[:-1]]
    assert all(one.samples <= MOST for one in found)
    assert found[0].end / RATE == pytest.approx(25.05, abs=0.1)
    assert found[-1].end / RATE == pytest.approx(65.1, abs=0.1)


def voices(*spans: tuple[float, float]) -> list[Span]:
    return [Span(round(start * RATE), round(end * RATE)) for start, end in spans]


def pieces(spans: list[Span], seconds: float) -> list[list[tuple[float, float]]]:
    found = pieces_of(spans, round(seconds * RATE), MOST)
    return [seconds_of(list(piece.spans)) for piece in found]


def test_pieces_keep_margins_and_leave_long_pauses_out() -> None:
    assert pieces([], 10) == []
    # The pause of half a second stays, that of three does not.
    spans = voices((1, 3), (3.5, 6), (9, 10))
    assert pieces(spans, 10.2) == [[(0.6, 6.4), (8.6, 10.2)]]


def test_a_piece_ends_at_the_longest_pause_that_is_near_its_end() -> None:
    spans = voices((0, 3), (5, 12), (12.2, 23), (23.8, 27), (27.2, 35))
    # Of 12 s and 23 s, what is left at 23 s is the longer pause; that at 3 s would waste the rest.
    assert pieces(spans, 35) == [[(0.0, 3.4), (4.6, 23.4)], [(23.4, 35.0)]]


def test_no_piece_is_longer_than_the_model_hears() -> None:
    rng = np.random.default_rng(3)
    edges = np.cumsum(rng.uniform(0.15, 4.0, 120))
    spans = voices(*edges.reshape(-1, 2).tolist())
    total = round(edges[-1] * RATE) + RATE
    found = pieces_of(spans, total, MOST)
    places = np.arange(total)
    assert all(len(piece.of(places)) <= MOST for piece in found)
    heard = np.concatenate([piece.of(places) for piece in found])
    assert (np.diff(heard) > 0).all()  # nothing twice, nothing out of order
    is_heard = np.zeros(total, np.bool_)
    is_heard[heard] = True
    assert all(is_heard[span.start : span.end].all() for span in spans)
    assert len(found) < 1.5 * len(heard) / MOST + 1


def test_a_voice_as_long_as_a_piece_has_no_margins() -> None:
    spans = voices((10, 40))
    assert pieces(spans, 60) == [[(10.0, 40.0)]]


def test_times_in_a_piece_are_told_in_the_audio() -> None:
    piece = Piece((Span(RATE, 3 * RATE), Span(10 * RATE, 11 * RATE)))
    assert piece.time_of(0.0) == 1.0
    assert piece.time_of(1.5) == 2.5
    # At the cut, what starts is behind it and what ends is in front of it.
    assert piece.time_of(2.0) == 10.0
    assert piece.time_of(2.0, is_end=True) == 3.0
    assert piece.time_of(2.75, is_end=True) == 10.75
    assert piece.time_of(9.0, is_end=True) == 11.0
