from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shared_artifacts import SharedArtifacts

from speechquant.benchmarks import evaluate
from speechquant.benchmarks.papers.joined_clips import clip_by_clip, joined_errors, lots_of
from speechquant.benchmarks.papers.whisper_agreement import GREEDY, Reference
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.engines import open_recognizer
from speechquant.training.augment import coloured_noise
from speechquant.zoo.corpus import SAMPLE_RATE_HZ
from speechquant.zoo.models import TRAINED_MODELS, WHISPER

CHECKPOINT = TRAINED_MODELS / WHISPER
# All of these have more in whisper_agreement.
COMPARED_CLIPS = 12
SCORED_CLIPS = 100
STRUNG_SECONDS = 180.0


@pytest.fixture(scope="module")
def bundle(shared: SharedArtifacts) -> Bundle:
    exported, parity = shared.zoo_whisper_with_parity()
    assert max(result.max_difference for result in parity) <= 1e-4
    return exported


@pytest.fixture(scope="module")
def clips(shared: SharedArtifacts) -> list[LabelledClip]:
    return shared.zoo_clips()


def test_the_checkpoint_fits_the_package() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 13e6
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["max_source_positions"] == 400  # 8 s
    settings = json.loads((CHECKPOINT / "training-settings.json").read_text())
    assert not any(Path(row["source"]).is_absolute() for row in settings["extra_data"])


def test_texts_are_those_of_transformers(bundle: Bundle, clips: list[LabelledClip]) -> None:
    waves = [read_audio(clip.path, SAMPLE_RATE_HZ) for clip in clips[:COMPARED_CLIPS]]
    expected = Reference(CHECKPOINT).texts(waves)
    with open_recognizer(bundle, decoding=GREEDY) as recognizer:
        assert recognizer.transcribe(waves) == expected
    assert len(set(expected)) > COMPARED_CLIPS / 2


def test_it_hears(bundle: Bundle, clips: list[LabelledClip]) -> None:
    with open_recognizer(bundle) as recognizer:
        result = evaluate(recognizer, clips[:SCORED_CLIPS])
    # 27 of 850 words, 3.2 %; another processor may round a few of them otherwise.
    assert result.words.errors <= 27 + 6


def test_long_audio_is_cut_where_transformers_cuts_it(
    bundle: Bundle, clips: list[LabelledClip]
) -> None:
    (lot, *_) = lots_of(clips, 45.0)
    with open_recognizer(bundle, decoding=GREEDY) as recognizer:
        found = recognizer.recognize([lot.wave])[0]
    assert [found.text] == Reference(CHECKPOINT).texts([lot.wave])
    starts = [segment.start for segment in found.segments]
    assert starts == sorted(starts)
    assert len(starts) > len(lot.clips) / 2


@pytest.mark.slow
def test_clips_strung_together_are_heard_as_well(bundle: Bundle, clips: list[LabelledClip]) -> None:
    (lot, *_) = lots_of(clips, STRUNG_SECONDS)
    with open_recognizer(bundle) as recognizer:
        alone = clip_by_clip(lot, recognizer.transcribe)
        found = joined_errors(lot, alone, recognizer.transcribe([lot.wave]))
    # 3.4 % against 4.1 %; a word is 0.16 points of this lot.
    assert found.joined < found.alone + 0.005
    assert found.lost_clips == 0


def test_nothing_is_invented_where_nobody_speaks(bundle: Bundle) -> None:
    rng = np.random.default_rng(1)
    noise = (0.01 * rng.standard_normal(3 * SAMPLE_RATE_HZ)).astype(np.float32)
    # Not quite silence, which is not even decoded: a level of 16 bits up and down.
    silence = (rng.integers(-1, 2, 20 * SAMPLE_RATE_HZ) / 32_768).astype(np.float32)
    rumble = np.float32(0.05) * coloured_noise(9 * SAMPLE_RATE_HZ, 1.0, rng)
    with open_recognizer(bundle) as recognizer:
        assert recognizer.transcribe([silence, noise, rumble]) == ["", "", ""]
