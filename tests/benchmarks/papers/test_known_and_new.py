from __future__ import annotations

import pytest

from speechquant.benchmarks.papers.known_and_new import CLIPS, plan
from speechquant.zoo.corpus import plan_clips
from speechquant.zoo.grammar import transcript_of
from speechquant.zoo.voices import voices_of


@pytest.mark.parametrize("known_sentences", [True, False])
@pytest.mark.parametrize("known_voices", [True, False])
def test_what_is_known_and_what_is_new(known_sentences: bool, known_voices: bool) -> None:
    trained_on = {transcript_of(clip.spoken.text) for clip in plan_clips("train")}
    clips = plan(known_sentences=known_sentences, known_voices=known_voices)
    assert len(clips) == CLIPS
    assert {transcript_of(clip.spoken.text) in trained_on for clip in clips} == {known_sentences}
    voices = {clip.spoken.voice for clip in clips}
    assert (voices <= set(voices_of("train"))) == known_voices
    assert (voices <= set(voices_of("dev"))) != known_voices
