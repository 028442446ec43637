from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.engine_folders import Limits
from speechquant.core.errors import AudioError
from speechquant.engines import CtcRecognizer, DecodingOptions
from speechquant.engines.ctc.windows import Windows, stitched, window_samples, windows_over

RATE_HZ = 16_000
BLANK, NOISE = 0, 31


class CountingSession:
    """Hears in each frame the label that the frame's first sample holds, but noise at the edges."""

    provider = "cpu"

    def __init__(self, spec: CtcSpec, edge: int = 50) -> None:
        self.spec, self.edge = spec, edge
        self.samples: list[tuple[int, ...]] = []

    def __enter__(self) -> CountingSession:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        waves = feeds["input_values"]
        self.samples.append(waves.shape)
        frames = self.spec.frames_of(waves.shape[1])
        labels = waves[:, : 320 * frames : 320].astype(int)
        rows = np.eye(32, dtype=np.float32)[labels]
        if frames > 4 * self.edge:
            rows[:, : self.edge] = rows[:, -self.edge :] = np.eye(32)[NOISE]
        return {"logits": rows}


def counting(bundle: Bundle, limits: Limits | None = None) -> tuple[CtcRecognizer, CountingSession]:
    spec = replace(bundle.spec_as(CtcSpec), normalize_waveform=False)
    session = CountingSession(spec)
    return CtcRecognizer(replace(bundle, spec=spec), session, limits), session


def spoken(seconds: float, seed: int) -> tuple[NDArray[np.float32], list[int]]:
    """Return samples that hold the label of their frame, and the labels: a letter, then a pause."""
    rng = np.random.default_rng(seed)
    frames = int(seconds * RATE_HZ) // 320
    labels = np.zeros(frames, int)
    for frame in range(60, frames - 60, 7):
        labels[frame : frame + rng.integers(1, 4)] = rng.integers(5, 30)
    return np.repeat(labels, 320).astype(np.float32), labels.tolist()


def test_windows_cover_a_clip_and_the_last_ends_with_it(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec_as(CtcSpec)
    for samples in (121 * RATE_HZ, 121 * RATE_HZ + 319, 600 * RATE_HZ + 7):
        windows = windows_over(spec, samples)
        assert windows.samples == window_samples(spec) <= 30 * RATE_HZ
        assert spec.frames_of(windows.samples) == windows.frames
        assert windows.starts[0] == 0
        assert windows.starts[-1] + windows.frames == spec.frames_of(samples)
        assert (windows.starts[-1] * 320 + windows.samples) <= samples
        steps = np.diff(windows.starts)
        assert steps.min() > 0 and steps.max() == windows.frames - 2 * 150


@pytest.mark.parametrize("seed", range(4))
def test_a_long_clip_says_what_its_frames_say(tiny_bundle: Bundle, seed: int) -> None:
    wave, labels = spoken(150.0 + 13.7 * seed, seed)
    recognizer, session = counting(tiny_bundle)
    (found,) = recognizer.recognize([wave])
    expected = np.array(labels[: recognizer.spec.frames_of(len(wave))])
    expected[: session.edge] = expected[-session.edge :] = NOISE
    letters = recognizer._decoder.words_in(expected)
    assert [word.text for word in found.words] == [word.text for word in letters]
    starts = [word.first_frame * 0.02 for word in letters]
    assert [word.start for word in found.words] == pytest.approx(starts, abs=1e-3)
    # Each call hears one window, whatever the clip's length.
    assert set(session.samples) == {(1, window_samples(recognizer.spec))}


def test_a_clip_that_one_call_can_hear_is_heard_at_once(tiny_bundle: Bundle) -> None:
    recognizer, session = counting(tiny_bundle)
    recognizer.recognize([np.ones(120 * RATE_HZ, np.float32)])
    assert session.samples == [(1, 120 * RATE_HZ)]


def test_window_by_window_it_is_heard_as_at_once(tiny_bundle: Bundle) -> None:
    wave, _ = spoken(200.0, 7)
    recognizer, _ = counting(tiny_bundle)
    hearing = recognizer.begin(wave, DecodingOptions())
    shares, said = [], [""]
    while not hearing.is_done:
        recognizer.advance([hearing])
        shares.append(hearing.share_done)
        said.append(recognizer.heard(hearing).text)
    (at_once,) = recognizer.recognize([wave])
    assert recognizer.heard(hearing) == at_once
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 5
    assert all(later.startswith(before) for before, later in pairwise(said))


def test_an_engine_hears_windows_where_they_fit_its_lengths(tiny_bundle: Bundle) -> None:
    recognizer, session = counting(tiny_bundle, Limits(RATE_HZ, 10 * RATE_HZ, 40 * RATE_HZ))
    recognizer.recognize([spoken(50.0, 1)[0]])
    assert len(session.samples) == 2
    recognizer, _ = counting(tiny_bundle, Limits(RATE_HZ, 10 * RATE_HZ, 20 * RATE_HZ))
    with pytest.raises(AudioError, match=r"the engine was built for 1\.00 to 20\.00 s"):
        recognizer.recognize([spoken(50.0, 1)[0]])


def test_what_is_longer_than_any_clip_may_be_is_refused(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer, session = counting(tiny_bundle)
    assert recognizer.max_clip_seconds == 4 * 3600
    monkeypatch.setattr(CtcRecognizer, "max_clip_seconds", 130.0)
    with pytest.raises(AudioError, match="clip: 131 s of audio, at most 130 s are taken"):
        recognizer.check(np.zeros(131 * RATE_HZ, np.float32), "clip")
    assert session.samples == []


def test_a_letter_at_the_stitch_is_neither_lost_nor_said_twice() -> None:
    # The middle of the overlap is frame 14; the windows hear the letter 9 a frame apart.
    left, right = np.zeros(20, int), np.zeros(20, int)
    windows = Windows((0, 8), 20, 0, 320)
    left[14], right[13 - 8] = 9, 9
    assert np.count_nonzero(stitched([left, right], windows, BLANK)) == 1
    left[:], right[:] = 0, 0
    left[13], right[14 - 8] = 9, 9
    assert np.count_nonzero(stitched([left, right], windows, BLANK)) == 1
    assert len(stitched([left, right], windows, BLANK)) == 28
