from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from speechquant.benchmarks.bench.timing_audio import TimingAudio
from speechquant.core.manifests import LabelledClip

RATE = 16_000


def written(folder: Path, *seconds: float) -> list[LabelledClip]:
    clips = []
    for number, length in enumerate(seconds, start=1):
        path = folder / f"{number}.wav"
        wave = np.full(int(length * RATE), number / 10, np.float32)
        soundfile.write(path, wave, RATE, subtype="FLOAT")
        clips.append(LabelledClip(path, None))
    return clips


def test_pieces_follow_each_other_through_the_clips(tmp_path: Path) -> None:
    reel = TimingAudio(written(tmp_path, 1.0, 0.5, 2.0), RATE, 3.5)
    first, second = reel.pieces(1.25, 2)
    assert (len(first), len(second)) == (20_000, 20_000)
    assert np.allclose(first[:RATE], 0.1)
    assert np.allclose(first[RATE:], 0.2)
    assert np.allclose(second[:4_000], 0.2)
    assert np.allclose(second[4_000:], 0.3)


def test_a_short_set_is_heard_again(tmp_path: Path) -> None:
    reel = TimingAudio(written(tmp_path, 0.5, 0.25), RATE, 10.0)
    (piece,) = reel.pieces(2.0, 1)
    assert len(piece) == 2 * RATE
    assert np.array_equal(piece[:12_000], piece[12_000:24_000])


def test_no_more_is_read_than_the_longest_batch_needs(tmp_path: Path) -> None:
    clips = [*written(tmp_path, 1.0), LabelledClip(tmp_path / "missing.wav", None)]
    assert len(TimingAudio(clips, RATE, 1.0).pieces(1.0, 1)[0]) == RATE
