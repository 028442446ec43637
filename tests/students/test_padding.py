"""A student is trained mostly on clips that fill no chunk, and used on whole chunks alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.wer import score_wer
from speechquant.students.distil import Distillation, Settings, read_teacher, train
from speechquant.students.student import Shape, student_of
from speechquant.training.processes import Processes
from speechquant.training.samples import SAMPLE_RATE_HZ, load_samples
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import TRAINED_MODELS, WHISPER


@pytest.mark.slow
def test_a_student_hears_padded_clips_as_well_as_short_ones(tmp_path: Path) -> None:
    teacher = read_teacher(str(TRAINED_MODELS / WHISPER), None)
    config = teacher.model.config
    clips = load_samples(read_data_set(corpus_manifest("dev"))[:360])
    scored = sorted(clips[300:], key=lambda clip: len(clip.wave))[8:56]
    settings = Settings(
        steps=60, warmup_steps=10, batch_seconds=24.0, save_every=30, score_every=60
    )
    (tmp_path / "settings.json").write_text("{}")
    shape = Shape(config.encoder_layers, config.decoder_layers, "token")
    run = Distillation(tmp_path, settings, teacher, student_of(teacher.model, shape), Processes())
    train(run, [(1.0, clips[:300])], {"dev": scored})
    in_chunks = run.word_error_percent(scored)
    errors = words = 0
    for first in range(0, len(scored), 8):
        group = scored[first : first + 8]  # of about one length
        longest = max(len(clip.wave) for clip in group)
        limits = replace(teacher.limits, chunk_samples=longest + SAMPLE_RATE_HZ)
        run.teacher = replace(teacher, limits=limits)
        found = score_wer([clip.text for clip in group], run.transcribe(group))
        errors, words = errors + found.errors, words + found.reference_length
    assert in_chunks <= 100 * errors / words + 1.0
    assert in_chunks < 8.0
