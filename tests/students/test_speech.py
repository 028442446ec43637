"""What a student is given of a data set: tokens, and clips that fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_whisper import CHUNK_SECONDS, token_names

from speechquant.core.errors import ManifestError, OptionError
from speechquant.core.seq2seq import GenerationSpec
from speechquant.students.distil import read_teacher
from speechquant.students.losses import IGNORED
from speechquant.students.speech import (
    Limits,
    Writing,
    augmented,
    padded_samples,
    prompt_of,
    read_speech,
)
from speechquant.training.samples import Extra, Sample

RATE_HZ = 16_000
CHUNK = CHUNK_SECONDS * RATE_HZ
SEVERAL = GenerationSpec(
    1, 0, 24, no_timestamps=9, languages={"en": 2, "de": 3}, tasks={"transcribe": 4}
)


@pytest.fixture(scope="module")
def writing(tiny_whisper: Path) -> Writing:
    return read_teacher(str(tiny_whisper), "de").writing


def data_set(folder: Path, *rows: tuple[str, float, str]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for index, (text, seconds, speaker) in enumerate(rows):
        wave = 0.1 * np.random.default_rng(index).standard_normal(round(seconds * RATE_HZ))
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ)
        lines.append({"audio_filepath": f"{index}.wav", "text": text, "speaker": speaker})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_prompts_of_both_kinds_of_teachers() -> None:
    assert prompt_of(SEVERAL, "de", "base") == [1, 3, 4, 9]
    assert prompt_of(GenerationSpec(1, 0, 24, no_timestamps=9), None, "tiny.en") == [1, 9]


@pytest.mark.parametrize(
    ("generation", "language", "said"),
    [
        (GenerationSpec(1, 0, 24), "en", "--language en: T knows one language alone"),
        (SEVERAL, "fr", "--language fr: T takes one of en, de"),
        (SEVERAL, None, "--language is not given: T takes one of en, de"),
    ],
)
def test_languages_that_a_teacher_does_not_take(
    generation: GenerationSpec, language: str | None, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        prompt_of(generation, language, "T")


def test_the_decoder_foresees_texts_and_their_ends(writing: Writing) -> None:
    names = token_names()
    start, german, transcribe, plain = (
        names.index(f"<|{name}|>") for name in ("startoftranscript", "de", "transcribe", "notimestamps")
    )  # fmt: skip
    space, a, b, end = (names.index(name) for name in ("\u0120", "a", "b", "<|endoftext|>"))
    given, wanted = writing.inputs_and_targets(["ab", "a"])
    prompt = [start, german, transcribe, plain]
    assert given.tolist() == [[*prompt, space, a, b], [*prompt, space, a, end]]
    nothing = [IGNORED] * 3
    assert wanted.tolist() == [[*nothing, space, a, b, end], [*nothing, space, a, end, IGNORED]]
    assert writing.text([space, a, b, end, a]) == "ab"


def test_what_does_not_fit_is_left_out(writing: Writing, tmp_path: Path) -> None:
    data = data_set(
        tmp_path / "data",
        ("GO ON", 1.0, "a"), ("too long a clip", 3.0, "a"), ("b" * 30, 1.0, "a"),
        ("stop now", 1.2, "b"), ("42", 1.0, "b"), ("look up", 1.0, "c"),
    )  # fmt: skip
    heard = read_speech([Extra(data, 0.3, 1)], [], 5, Limits(CHUNK, writing), 0)
    ((share, samples),) = heard.sets
    assert share == 0.3
    assert [sample.text for sample in samples] == ["go on", "stop now"]
    assert {name: [s.text for s in some] for name, some in heard.scored.items()} == {
        "data": ["look up"]
    }


def test_sets_of_one_name_are_all_scored(writing: Writing, tmp_path: Path) -> None:
    manifests = []
    for name, text in (("read", "go on"), ("spelled", "look up")):
        folder = data_set(tmp_path / name, (text, 1.0, "a"))
        manifests.append((folder / "manifest.jsonl").rename(folder / "dev.jsonl"))
    heard = read_speech([Extra(manifests[0], 1.0)], manifests, 5, Limits(CHUNK, writing), 0)
    assert {name: [s.text for s in some] for name, some in heard.scored.items()} == {
        "dev": ["go on"],
        "spelled-dev": ["look up"],
    }


def test_data_that_nothing_can_be_learnt_from(writing: Writing, tmp_path: Path) -> None:
    limits = Limits(CHUNK, writing)
    with pytest.raises(ManifestError, match="no string under the key 'text'"):
        (tmp_path / "no.jsonl").write_text('{"audio_filepath": "0.wav"}')
        read_speech([Extra(tmp_path / "no.jsonl", 1.0)], [], 5, limits, 0)
    data = data_set(tmp_path / "empty", ("", 1.0, "a"), ("", 1.0, "b"))
    with pytest.raises(
        ManifestError, match=r"empty: no clip to train or score on; give clips of at most 2 s"
    ):
        read_speech([Extra(data, 1.0)], [], 5, limits, 0)
    good = data_set(tmp_path / "good", ("go on", 1.0, "a"))
    with pytest.raises(OptionError, match="nothing to choose the best checkpoint by"):
        read_speech([Extra(good, 1.0)], [], 5, limits, 0)
    with pytest.raises(OptionError, match="3 speakers cannot be held out of 1; lower hold_out"):
        read_speech([Extra(good, 1.0, 3)], [], 5, limits, 0)


def test_a_share_of_the_batches_are_whole_chunks() -> None:
    rng, chunk = np.random.default_rng(0), 30 * RATE_HZ
    lengths = [padded_samples(10_000, chunk, 0.25, rng) for _ in range(400)]
    assert 80 < lengths.count(chunk) < 120
    assert min(lengths) >= 10_000 + RATE_HZ
    assert sorted(set(lengths))[-2] < 10_000 + 4.1 * RATE_HZ
    assert {padded_samples(10_000, chunk, 1.0, rng) for _ in range(20)} == {chunk}


def test_no_clip_outgrows_its_chunk() -> None:
    rng = np.random.default_rng(0)
    wave = (3000 * rng.standard_normal(CHUNK - 100)).astype(np.int16)
    assert all(len(augmented(Sample(wave, "a"), CHUNK, 1.0, rng)) == len(wave) for _ in range(5))
    short = Sample(wave[:8000], "a")
    assert len({len(augmented(short, CHUNK, 1.0, rng)) for _ in range(5)}) > 1
    assert np.array_equal(augmented(short, CHUNK, 0.0, rng), short.floats)
