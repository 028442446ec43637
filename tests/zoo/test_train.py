from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechquant.core.manifests import LabelledClip
from speechquant.training.batches import batches
from speechquant.training.run import SETTINGS_FILE
from speechquant.training.samples import (
    Extra,
    Sample,
    join_single_words,
    load_samples,
    split_speakers,
)
from speechquant.training.schedule import learning_rate
from speechquant.zoo.models import new_model
from speechquant.zoo.train import (
    Run,
    Settings,
    greedy_text,
    keep_layout_through_norms,
    train,
)

RATE_HZ = 16_000
SETTINGS = Settings(
    steps=4, warmup_steps=2, decay_steps=2, batch_seconds=4.0, save_every=2, score_every=4
)


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        Sample((rng.standard_normal(RATE_HZ // 2 + 100 * i) * 3_000).astype(np.int16), "yes no")
        for i in range(count)
    ]


def weights_after(
    folder: Path, settings: Settings, name: str = "hubert"
) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
    run = Run(name, folder, settings, None)
    train(run, [(1.0, samples(6))], {"self": samples(1)})
    return run.model.state_dict()


def test_a_killed_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    original = Run.train_on

    def counted(self: Run, batch: list[Sample]) -> float:
        taken.append(self.step)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Run, "train_on", counted)
    with pytest.raises(KeyboardInterrupt):
        weights_after(tmp_path / "run", SETTINGS)
    weights_after(tmp_path / "run", SETTINGS)
    # The fourth step is killed; the run goes on from the checkpoint after the second.
    assert taken == [0, 1, 2, 3, 2, 3]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert "wer_self" in rows[-1]
    written = {path.name for path in (tmp_path / "run" / "checkpoint").iterdir()}
    assert written >= {"model.safetensors", "training-log.jsonl", "training-settings.json"}


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=30, decay_steps=5, save_every=10, score_every=30)
    weights_after(tmp_path / "run", settings, "wav2vec2")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_warm_start_takes_the_weights_that_fit(tmp_path: Path) -> None:
    weights_after(tmp_path / "first", SETTINGS, "wav2vec2")
    warm = Run("hubert", tmp_path, SETTINGS, tmp_path / "first" / "checkpoint").model
    own = Run("wav2vec2", tmp_path / "first", SETTINGS, None).model
    key = "encoder.layers.0.attention.q_proj.weight"
    expected = own.base_model.get_parameter(key).half().float()
    assert torch.equal(warm.base_model.get_parameter(key), expected)
    assert torch.equal(warm.lm_head.weight, own.lm_head.weight.half().float())


def test_frozen_convolutions_stay_and_the_others_learn(tmp_path: Path) -> None:
    settings = replace(SETTINGS, frozen_convolutions=2)
    before = Run("hubert", tmp_path, settings, None).model.state_dict()
    after = weights_after(tmp_path / "run", settings)
    moved = [
        not torch.equal(
            before[f"hubert.feature_extractor.conv_layers.{i}.conv.weight"],
            after[f"hubert.feature_extractor.conv_layers.{i}.conv.weight"],
        )
        for i in range(7)
    ]
    assert moved == [False] * 2 + [True] * 5


def test_kept_layout_changes_no_value() -> None:
    model = new_model("hubert").eval()
    wave = torch.randn(2, 8_000)
    with torch.inference_mode():
        expected = model(wave).logits
        keep_layout_through_norms(model)
        torch.testing.assert_close(model(wave).logits, expected, rtol=0, atol=1e-5)


def test_batches_stay_within_their_seconds_and_mix_the_sets() -> None:
    short, long = samples(50), [replace(sample, text="long") for sample in samples(50, 1)]
    groups = list(islice(batches([(0.8, short), (0.2, long)], 4.0, random.Random(0)), 300))
    assert max(max(len(s.wave) for s in group) * len(group) for group in groups) <= 4.0 * RATE_HZ
    texts = [sample.text for group in groups for sample in group]
    assert texts.count("long") / len(texts) == pytest.approx(0.2, abs=0.05)


def test_short_clips_of_one_word_are_strung_together_by_speaker(tmp_path: Path) -> None:
    def clip(name: str, text: str, speaker: str, samples: int = 4_000) -> LabelledClip:
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.full(samples, 0.1), RATE_HZ)
        return LabelledClip(path, text, None, speaker)

    words = [clip(f"{index}", "ab"[index % 2], "ab"[index % 2]) for index in range(12)]
    others = [clip("two", "take me", "a"), clip("slow", "zero", "b", 2 * RATE_HZ)]
    strung = join_single_words([*words, *others], random.Random(0))
    texts = [sample.text for sample in strung]
    assert {"take me", "zero"} < set(texts)
    joined = [text.split() for text in texts if text not in ("take me", "zero")]
    assert all(len(set(speakers)) == 1 for speakers in joined)
    assert sum(map(len, joined)) == 12 and len(joined) < 12


def test_clips_outside_the_alphabet_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(4_000, 0.1), RATE_HZ)
    texts = ["Yes", "room 12", "", None, "café"]
    kept = load_samples([LabelledClip(path, text) for text in texts])
    assert [sample.text for sample in kept] == ["yes"]


def test_last_speakers_are_held_out() -> None:
    clips = [LabelledClip(Path("a"), "x", None, speaker) for speaker in "cabdab"]
    seen, unseen = split_speakers(clips, 2)
    assert {clip.speaker for clip in unseen} == {"c", "d"}
    assert len(seen) == 4
    assert split_speakers(clips, 0) == (clips, [])
    with pytest.raises(ValueError, match="4 speakers"):
        split_speakers(clips, 4)


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = Settings(steps=100, warmup_steps=10, decay_steps=20, peak_learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in (0, 9, 50, 80, 90, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_extra_data_option() -> None:
    assert Extra.parse("an4,share=0.3,hold_out=8") == Extra(Path("an4"), 0.3, 8)
    assert Extra.parse("an4") == Extra(Path("an4"), 0.2, 0)
    with pytest.raises(ValueError, match="holdout"):
        Extra.parse("an4,holdout=8")


def test_greedy_text() -> None:
    ids = np.array([0, 6, 6, 0, 6, 4, 4, 7, 0])
    assert greedy_text(ids) == "aa b"
