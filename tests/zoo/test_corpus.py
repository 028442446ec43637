from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import StorageError
from speechquant.zoo import corpus
from speechquant.zoo.corpus import SPLITS, UTTERANCES, plan_clips
from speechquant.zoo.grammar import RULES, sentence, spoken_number, transcript_of, vocabulary
from speechquant.zoo.voices import voices_of


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Twelve clips a split, three a job, in a cache of its own."""
    monkeypatch.setenv("SPEECHQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "UTTERANCES", dict.fromkeys(SPLITS, 12))
    monkeypatch.setattr(corpus, "_CLIPS_PER_JOB", 3)
    monkeypatch.setattr(corpus, "voices_of", lambda split: voices_of(split)[:2])
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_grammar_says_over_600_words_and_only_those() -> None:
    words = vocabulary()
    assert len(words) >= 600
    rng = random.Random(0)
    said = {word for _ in range(20_000) for word in transcript_of(sentence(rng)).split()}
    assert said == words
    assert all(re.fullmatch("[a-z']+", word) for word in words)


def test_every_rule_that_is_named_exists() -> None:
    slots = {
        name
        for options in RULES.values()
        for text in options
        for name in re.findall(r"<(\w+)>", text)
    }
    rng = random.Random(0)
    for slot in slots:
        from speechquant.zoo.grammar import expand

        assert "<" not in expand(f"<{slot}>", rng)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"), (10, "ten"), (19, "nineteen"), (20, "twenty"), (42, "forty two"),
        (100, "one hundred"), (115, "one hundred fifteen"), (1_000, "one thousand"),
        (40_013, "forty thousand thirteen"), (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)  # fmt: skip
def test_numbers_as_words(value: int, words: str) -> None:
    assert spoken_number(value) == words


def test_splits_share_neither_voices_nor_variants_nor_sentences() -> None:
    plans = {split: plan_clips(split) for split in SPLITS}
    voices = {split: {clip.spoken.voice for clip in plan} for split, plan in plans.items()}
    variants = {split: {voice.split("+")[1] for voice in names} for split, names in voices.items()}
    texts = {
        split: {transcript_of(clip.spoken.text) for clip in plan} for split, plan in plans.items()
    }
    for other in ("dev", "test"):
        assert not variants["train"] & variants[other]
        assert not texts["train"] & texts[other]
    assert not texts["dev"] & texts["test"]
    assert len(set.union(*voices.values())) >= 24
    assert len(voices["train"]) >= 24
    assert {voice.split("+")[0] for voice in voices["train"]} >= {"gmw/en-US", "gmw/en-GB-scotland"}


def test_the_parts_have_the_size_they_should() -> None:
    assert (UTTERANCES["dev"], UTTERANCES["test"]) == (400, 800)
    words = sum(len(clip.spoken.text.split()) for clip in plan_clips("test"))
    assert words >= 5_000


def test_rendering_gives_the_same_bytes_again(small_corpus: Path) -> None:
    first = corpus.render_clips(plan_clips("dev"), small_corpus / "a").parent
    second = corpus.render_clips(plan_clips("dev"), small_corpus / "b").parent
    assert contents(first) == contents(second)
    assert len(list(first.glob("*.flac"))) == 12


def test_a_killed_run_goes_on_and_ends_the_same(small_corpus: Path) -> None:
    whole = corpus.render_clips(plan_clips("dev"), small_corpus / "whole").parent
    jobs = corpus._jobs(plan_clips("dev"))
    folder = small_corpus / "resumed"
    folder.mkdir()
    corpus._render_job(jobs[1], folder, None)  # what a run had done before it was killed
    rendered = {path: path.stat().st_mtime_ns for path in folder.glob("*.flac")}
    steps: list[tuple[int, int]] = []
    corpus.render_clips(plan_clips("dev"), folder, lambda done, total: steps.append((done, total)))
    assert contents(folder) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in rendered} == rendered
    assert steps[0] == (2, len(jobs))


def test_manifest_and_audio_agree(small_corpus: Path) -> None:
    manifest = corpus.corpus_manifest("test")
    assert manifest.is_relative_to(small_corpus / "cache")
    clips = read_data_set(manifest)
    planned = {f"{clip.name}.flac": clip for clip in plan_clips("test")}
    for clip in clips:
        info = soundfile.info(clip.path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert clip.seconds == pytest.approx(info.duration, abs=1e-3)
        assert clip.text == transcript_of(planned[clip.path.name].spoken.text)
        wave, _ = soundfile.read(clip.path)
        assert 0.05 < np.abs(wave).max() <= 0.9


def test_a_rendered_part_is_not_rendered_again(
    small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.corpus_manifest("dev")
    assert corpus.is_rendered("dev")
    monkeypatch.setattr(corpus, "render_clips", lambda *_: pytest.fail("rendered again"))
    corpus.corpus_manifest("dev")


def test_a_renderer_that_fails_leaves_no_manifest(
    small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "voices_of", lambda _: ("gmw/nobody",))
    with pytest.raises(StorageError, match="espeak-ng has no voice 'gmw/nobody'"):
        corpus.corpus_manifest("dev")
    assert not corpus.is_rendered("dev")


def test_manifest_rows_are_in_order(small_corpus: Path) -> None:
    rows = [json.loads(line) for line in corpus.corpus_manifest("dev").read_text().splitlines()]
    assert [row["audio_filepath"] for row in rows] == [f"dev-{i:05d}.flac" for i in range(12)]
