from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from quantized import whisper_w8a8

from speechquant.benchmarks.workbench import Workbench
from speechquant.core.bundles import new_bundle
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import SCALES_FILE, read_scales
from speechquant.core.seq2seq import Seq2SeqBundle, load_seq2seq_bundle

RATE_HZ = 16_000


def test_what_was_scored_is_not_taken_for_a_model_that_is_read_in_another_way(
    whisper_bundle: Seq2SeqBundle, tmp_path: Path
) -> None:
    generation = replace(whisper_bundle.spec.generation, max_new_tokens=1)
    spec = replace(whisper_bundle.spec, generation=generation)
    with new_bundle(tmp_path / "short", spec, dict(whisper_bundle.made_from)) as folder:
        for name in whisper_bundle.files:
            shutil.copyfile(whisper_bundle.folder / name, folder / name)
    wave = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)
    soundfile.write(tmp_path / "noise.wav", wave, RATE_HZ)
    clips = [LabelledClip(tmp_path / "noise.wav", "one two")]
    table = read_scales(whisper_w8a8(whisper_bundle, tmp_path / "w8a8").folder / SCALES_FILE)
    (tmp_path / "work").mkdir()
    words = [
        Workbench(bundle, clips, clips, tmp_path / "work").score(table).words
        for bundle in (whisper_bundle, load_seq2seq_bundle(tmp_path / "short"))
    ]
    assert words[0].errors > words[1].errors  # a dozen words for two, and one at most
