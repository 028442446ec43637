from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from quantized import whisper_w8a8
from tiny_whisper import with_generation

from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import SCALES_FILE, read_scales
from speechquant.recipes.calibrate import CalibrationRequest, calibrate, search_result_of
from speechquant.recipes.data import ClipList
from speechquant.recipes.experiment import Experiment

RATE_HZ = 16_000


def test_a_search_goes_on_from_what_an_experiment_paid_for(
    tiny_bundle: Bundle, tmp_path: Path, noise: NDArray[np.float32]
) -> None:
    soundfile.write(tmp_path / "noise.wav", noise[: RATE_HZ // 4], RATE_HZ)
    clips = [LabelledClip(tmp_path / "noise.wav", "one two")]
    experiment = Experiment(tiny_bundle, clips, clips, tmp_path / "work")
    found = experiment.search(8)
    log = experiment.search_log("fast")
    paid = log.read_text()
    assert len(paid.splitlines()) > 1
    request = CalibrationRequest(tiny_bundle, ClipList(tuple(clips)))
    made = calibrate(request, log.parent)
    assert log.read_text() == paid
    assert made.table.key == found.table.key
    # Nothing of it may be taken for another way to compare texts.
    strict = replace(request, normalizer="none")
    search_result_of(strict, experiment.statistics, log.parent)
    assert len(log.read_text().splitlines()) > len(paid.splitlines())


def test_what_was_scored_is_not_taken_for_a_model_that_is_read_in_another_way(
    whisper_bundle: Bundle, tmp_path: Path
) -> None:
    short = with_generation(whisper_bundle, tmp_path / "short", max_new_tokens=1)
    wave = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)
    soundfile.write(tmp_path / "noise.wav", wave, RATE_HZ)
    clips = [LabelledClip(tmp_path / "noise.wav", "one two")]
    table = read_scales(whisper_w8a8(whisper_bundle, tmp_path / "w8a8").folder / SCALES_FILE)
    (tmp_path / "work").mkdir()
    words = [
        Experiment(bundle, clips, clips, tmp_path / "work").score(table).words
        for bundle in (whisper_bundle, short)
    ]
    assert words[0].errors > words[1].errors  # a dozen words for two, and one at most
