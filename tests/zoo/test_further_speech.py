from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError
from speechquant.zoo import further_speech
from speechquant.zoo.corpus import plan_clips
from speechquant.zoo.further_speech import plan_further, sentences_in
from speechquant.zoo.grammar import transcript_of
from speechquant.zoo.invented_voices import invent_variant, variant_settings, write_voices

ESPEAK_DATA = Path(espeakng_loader.get_data_path())
VARIANT = """language variant
name Somebody
pitch 80 120  // low
#echo 10 10
formant 1 100 80 150 -50
formant 2 90 70 60
intonation 3
"""


def test_what_a_variant_sets() -> None:
    assert variant_settings(VARIANT) == {
        "pitch": [[80, 120]],
        "formant": [[1, 100, 80, 150, -50], [2, 90, 70, 60]],
        "intonation": [[3]],
    }


def test_an_invented_voice_is_near_its_parents_and_never_one_of_them() -> None:
    parents = [variant_settings(VARIANT), {"flutter": [[10]]}]
    invented = [
        variant_settings(invent_variant(parents, random.Random(seed))) for seed in range(200)
    ]
    # Each kind of setting from one parent or the other, so that all crossings come up.
    assert len({frozenset(settings) for settings in invented}) == 16
    formants = [settings["formant"] for settings in invented if "formant" in settings]
    assert all([formant[0] for formant in pair] == [1, 2] for pair in formants)
    frequencies = np.array([pair[0][1] for pair in formants])
    heights = np.array([pair[0][2] for pair in formants])
    assert 3 < frequencies.std() < 7 and abs(frequencies.mean() - 100) < 2
    assert 8 < heights.std() < 16 and abs(heights.mean() - 80) < 4
    assert {settings["intonation"][0][0] for settings in invented if "intonation" in settings} == {
        3
    }


def test_further_speech_is_new_and_of_the_training_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further_speech, "_CLIPS_OF_A_VOICE", 3)
    monkeypatch.setattr(further_speech, "_VOICES_AT_ONCE", 2)
    monkeypatch.setattr(sys, "argv", ["further_speech", "--out", str(tmp_path), "--voices", "3"])
    further_speech.main()
    clips = read_data_set(tmp_path)
    assert len(clips) == 9 and len({clip.speaker for clip in clips}) == 3
    assert len({clip.text for clip in clips}) == 9
    assert all(clip.seconds and clip.seconds > 0.2 for clip in clips)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    further_speech.main()  # finds all of it there
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")} == before
    monkeypatch.setattr(sys, "argv", ["further_speech", "--out", str(tmp_path), "--voices", "1"])
    further_speech.main()  # of fewer voices, none of which is left out or added
    assert len(read_data_set(tmp_path / "manifest.jsonl")) == 3


def test_no_sentence_of_dev_or_test_is_said_in_it() -> None:
    said = {
        transcript_of(clip.spoken.text)
        for clip in plan_further(
            [f"gmw/en+invented{index:03d}" for index in range(20)], random.Random(0)
        )
    }
    held_out = {
        transcript_of(clip.spoken.text) for split in ("dev", "test") for clip in plan_clips(split)
    }
    assert len(said) > 900 and not said & held_out


def test_voices_read_a_file_of_sentences(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(
        'He said: "Not today, sir!"\nIn 1901 he left us\nToo short\nWe don\'t know him\n'
    )
    sentences = sentences_in(texts)
    assert sentences == ["he said not today sir", "we don't know him"]
    clips = plan_further(["en+a1", "en+a2"], random.Random(0), sentences)
    assert {clip.spoken.text for clip in clips} == set(sentences)
    assert clips == plan_further(["en+a1", "en+a2"], random.Random(0), sentences)


def test_a_file_without_a_sentence_is_refused(tmp_path: Path) -> None:
    texts = tmp_path / "numbers.txt"
    texts.write_text("1 2 3\n")
    with pytest.raises(ManifestError, match=r"numbers.txt: no line of 3 to 25 words"):
        sentences_in(texts)


def test_espeak_speaks_with_an_invented_voice(tmp_path: Path) -> None:
    voices = write_voices(ESPEAK_DATA, tmp_path / "v", range(7, 9), random.Random(0))
    script = (
        "import sys; from pathlib import Path; from speechquant.zoo.espeak import *\n"
        "said = EspeakSynthesizer(Path(sys.argv[1]))\n"
        "for voice in sys.argv[2:]:\n"
        "    print(hash(said.speak(Utterance('Good morning.', voice, 170, 50, 50)).tobytes()))\n"
    )
    # In a process of its own: the library takes its data once.
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "v"), *voices, "gmw/en-US"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(set(done.stdout.split())) == 3


def test_what_cannot_be_read_out_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "latin.txt").write_bytes("ein Fräulein ging".encode("latin-1"))
    for options, said in (
        (["--voices", "0"], "--voices 0: too few"),
        (["--texts", str(tmp_path / "missing.txt")], "missing.txt"),
        (["--texts", str(tmp_path / "latin.txt")], "latin.txt.*UTF-8"),
    ):
        out = ["further_speech", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*out, *options])
        with pytest.raises(SystemExit, match=f"error: .*{said}"):
            further_speech.main()
    assert not (tmp_path / "out").exists()
