from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny_whisper import small_teacher
from transformers import WavLMForCTC

from speechquant.core.errors import OptionError
from speechquant.training.run import SETTINGS_FILE
from speechquant.training.samples import Extra, Sample
from speechquant.zoo import train_wavlm_from_whisper as training
from speechquant.zoo.train_wavlm_from_whisper import sets_to_train_and_score, train
from speechquant.zoo.wavlm_stages import (
    STAGES,
    BlocksStage,
    FrontEndStage,
    Models,
    Settings,
    Stage,
    WholeStage,
    batch_of,
    heard_by_chance,
    masked,
)
from speechquant.zoo.whisper_into_wavlm import (
    frames_of,
    front_end_features,
    is_heard,
    read_student,
    read_teacher,
    stem_features,
    student_of,
    student_states,
    teacher_states,
    unexplained,
)

RATE_HZ = 16_000
SETTINGS = Settings(
    steps=4,
    blocks_steps=4,
    front_end_steps=4,
    warmup_steps=2,
    decay_steps=2,
    batch_seconds=2.0,
    save_every=2,
    score_every=4,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    model = small_teacher(256, 100)
    # At their start every bias is zero and every norm the identity: then nothing has to be copied.
    for parameter in model.encoder.layers.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return read_teacher(folder)


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        Sample((rng.standard_normal(RATE_HZ // 2 + 100 * i) * 3_000).astype(np.int16), "yes no")
        for i in range(count)
    ]


def noise(rows: int, length: int) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(3))


def begun(folder: Path, settings: Settings = SETTINGS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
    return folder


def test_blocks_of_the_student_give_what_those_of_the_whisper_give(teacher: Any) -> None:
    student = student_of(teacher).double().eval()
    convolution = student.wavlm.encoder.pos_conv_embed.conv
    convolution.parametrizations.weight.original0.data.zero_()
    convolution.bias.data.zero_()
    exact = type(teacher)(teacher.config).double().eval()
    exact.load_state_dict(teacher.state_dict())
    mels = torch.randn(2, 80, 200, dtype=torch.float64)
    with torch.inference_mode():
        expected = exact(mels).last_hidden_state
        stem = torch.nn.functional.gelu(exact.conv1(mels))
        stem = torch.nn.functional.gelu(exact.conv2(stem)).transpose(1, 2)
        given = stem + exact.embed_positions.weight
        states = student_states(student, given, torch.ones(2, 100, dtype=torch.bool))
    torch.testing.assert_close(states[-1], expected, rtol=0, atol=1e-9)
    assert student.wavlm.encoder.layers[1].attention.k_proj.bias.abs().max() == 0
    assert student.wavlm.encoder.layers[1].attention.q_proj.bias.abs().max() > 0


def test_features_and_states_are_those_of_the_models_own_pass(teacher: Any) -> None:
    student = student_of(teacher).eval()
    waves, lengths = noise(2, 9_000), torch.tensor([9_000, 6_000])
    waves[1, 6_000:] = 0
    heard = is_heard(frames_of(9_000), lengths)
    mask = (torch.arange(9_000)[None] < lengths[:, None]).long()
    with torch.inference_mode():
        expected = student(waves, attention_mask=mask).logits
        features = front_end_features(student, waves)
        logits = student.lm_head(student_states(student, features, heard)[-1])
    torch.testing.assert_close(logits[heard], expected[heard], rtol=0, atol=1e-4)
    assert heard.sum(1).tolist() == student._get_feat_extract_output_lengths(lengths).tolist()


def test_a_click_is_in_the_same_frame_of_both(teacher: Any) -> None:
    models = Models(teacher)
    waves = noise(1, 16_000).repeat(2, 1)
    # The middle of the 1,040 samples that the student's tenth frame is made of.
    waves[1, 10 * 320 + 520] += 30.0

    def moved(features: torch.Tensor) -> list[int]:
        change = (features[0] - features[1]).abs().amax(-1)
        return (change > 1e-3 * change.max()).nonzero().flatten().tolist()

    with torch.inference_mode():
        assert moved(front_end_features(models.student, waves)) == [9, 10, 11]
        # 25 ms of the spectrum and two convolutions of three: one frame to each side.
        assert moved(models.stem(waves)) == [9, 10, 11]


@pytest.mark.parametrize("samples_given", [1_100, 1_359, 1_360, 4_321])
def test_the_stem_gives_as_many_frames_as_the_front_end(teacher: Any, samples_given: int) -> None:
    models = Models(teacher)
    waves = noise(1, samples_given)
    with torch.inference_mode():
        features = front_end_features(models.student, waves)
        stem = stem_features(teacher, models.filters, waves)
    assert stem.shape == features.shape == (1, (samples_given - 1_040) // 320 + 1, 256)


def test_states_of_the_teacher_are_its_own_at_its_positions(teacher: Any) -> None:
    models = Models(teacher)
    waves = noise(1, 520 + 32_000)  # exactly the frames that it has positions for
    captured: list[torch.Tensor] = []

    def capture(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        captured.append(inputs[0])

    hook = teacher.conv1.register_forward_pre_hook(capture)
    with torch.inference_mode():
        stem = models.stem(waves)
        hook.remove()
        expected = teacher(captured[0]).last_hidden_state[:, : stem.shape[1]]
        # The whole of it hears one frame more than the student's convolutions give.
        assert captured[0].shape[-1] == 200
        stem = torch.cat([stem, torch.zeros(1, 100 - stem.shape[1], 256)], 1)
        heard = torch.arange(100)[None] < 100
        states = teacher_states(teacher, stem, heard)
    assert len(states) == 3
    difference = (states[-1][:, : expected.shape[1]] - expected).square().mean()
    assert difference < 0.01 * expected.var()


def test_unexplained_is_one_for_the_mean_and_counts_every_channel_alike() -> None:
    target = torch.randn(2, 500, 2) * torch.tensor([1.0, 5.0])
    heard = torch.ones(2, 500, dtype=torch.bool)
    heard[1, 300:] = False
    mean = target[heard].mean(0).expand_as(target)
    half = mean + (target - mean) * torch.tensor([1.0, 0.0])
    rows = unexplained([mean, half, target], [target] * 3, heard)
    assert rows.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.01)
    still = torch.cat([target[..., :1], torch.zeros(2, 500, 1)], -1)
    off = still + torch.tensor([0.0, 0.1])
    # 0.01 of error in a channel that never moves, where half of the mean variance is 0.5.
    assert unexplained([off], [still], heard).item() == pytest.approx(0.01 / 0.005 / 2, rel=0.1)
    broken = target.clone()
    broken[1, 300:] = 1e6
    assert unexplained([broken], [target], heard).item() == 0.0


def test_padding_changes_neither_losses_nor_texts(teacher: Any, tmp_path: Path) -> None:
    stage = WholeStage(begun(tmp_path), replace(SETTINGS, masked_share=0.0), Models(teacher))
    stage.models.student.eval()
    wave = noise(1, 8_000).numpy()[0]
    alone = batch_of([wave], ["no"])
    beside = batch_of([wave, noise(1, 12_000).numpy()[0]], ["no", "no"])
    with torch.inference_mode():
        first = stage.models.logits(stage.features(alone.waves), alone.heard)
        second = stage.models.logits(stage.features(beside.waves), beside.heard)
    frames = int(alone.heard.sum())
    assert frames == frames_of(8_000) == 22
    torch.testing.assert_close(second[0, :frames], first[0], rtol=0, atol=1e-3)


def test_masked_frames_come_in_spans_of_ten() -> None:
    class Student:
        class wavlm:  # noqa: N801
            masked_spec_embed = torch.full((3,), 7.0)

    features = torch.zeros(4, 2_000, 3)
    given = masked(features, Student, 0.1, np.random.default_rng(0))
    is_hidden = (given == 7.0).all(-1)
    assert is_hidden.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(given[~is_hidden], features[~is_hidden])
    row = "".join("x" if hidden else " " for hidden in is_hidden[0])
    # One may begin within another, or be cut off by the end.
    assert min(map(len, row[:-10].split())) >= 10


@pytest.mark.parametrize(
    ("kind", "moving", "still"),
    [
        (BlocksStage, ["wavlm.encoder.layers.0"], ["wavlm.feature_", "lm_head"]),
        (FrontEndStage, ["wavlm.feature_extractor"], ["wavlm.encoder", "lm_head"]),
        (WholeStage, ["wavlm.encoder.layers.0", "wavlm.feature_extractor", "lm_head"], []),
    ],
)
def test_a_stage_trains_its_parts_alone(
    teacher: Any, tmp_path: Path, kind: type[Stage], moving: list[str], still: list[str]
) -> None:
    models = Models(teacher)
    before = {name: value.clone() for name, value in models.student.state_dict().items()}
    stage = kind(begun(tmp_path), SETTINGS, models)
    stage.take_step(samples(2))
    moved = {
        name for name, value in models.student.state_dict().items() if (value != before[name]).any()
    }
    assert all(any(name.startswith(part) for name in moved) for part in moving)
    assert not [name for name in moved if name.startswith(tuple(still) or ("-",))]


def test_the_front_end_comes_closer_to_the_stem(teacher: Any, tmp_path: Path) -> None:
    settings = replace(SETTINGS, front_end_steps=20, warmup_steps=1)
    stage = FrontEndStage(begun(tmp_path), settings, Models(teacher))
    stage.models.student.train()
    losses = [stage.take_step(samples(1))["stem"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def trained(out: Path, teacher: Any) -> Models:
    models = Models(teacher)
    for kind in STAGES:
        stage = kind(begun(out), SETTINGS, models)
        train(stage, [(1.0, samples(3))], {"self": samples(1)})
    return models


def test_a_killed_run_goes_on_in_its_stage(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, int]] = []
    original = Stage.take_step

    def counted(self: Stage, batch: list[Sample]) -> dict[str, float]:
        taken.append((self.name, self.step))
        if len(taken) == 8:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Stage, "take_step", counted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, teacher)
    models = trained(tmp_path, teacher)
    # The last step of the front end is killed; the run goes on from the state after its second.
    assert [step for name, step in taken if name == "blocks"] == [0, 1, 2, 3]
    assert [step for name, step in taken if name == "front-end"] == [0, 1, 2, 3, 2, 3]
    assert [step for name, step in taken if name == "whole"] == [0, 1, 2, 3]
    rows = [
        json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [2, 4]
    assert {"ctc", "distance", "seconds", "hours_left", "wer_self"} <= rows[-1].keys()
    for name in ("checkpoint", "best"):
        written = {path.name for path in (tmp_path / name).iterdir()}
        assert written >= {"config.json", "model.safetensors", "vocab.json", "training-log.jsonl"}
    again: Any = WavLMForCTC.from_pretrained(tmp_path / "checkpoint")
    key = "wavlm.encoder.layers.1.feed_forward.output_dense.weight"
    expected = models.student.state_dict()[key].half().float()
    assert torch.equal(again.state_dict()[key].float(), expected)


def test_best_is_kept_when_a_later_one_is_worse(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = WholeStage(begun(tmp_path), SETTINGS, Models(teacher))
    written: list[str] = []
    monkeypatch.setattr(Stage, "_write", lambda _, folder: written.append(folder.name))
    for percent in (50.0, 40.0, 45.0):
        stage.note(seconds=1.0, wer_a=percent, wer_b=percent)
        stage.write_checkpoint()
        stage.note(seconds=1.0)
    assert written == ["checkpoint", "best", "checkpoint", "best", "checkpoint"]


def test_no_test_speaker_is_trained_on_or_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def manifest(folder: Path, speakers: Sequence[str]) -> Path:
        folder.mkdir()
        soundfile.write(folder / "a.wav", np.full(2 * RATE_HZ, 0.1), RATE_HZ)
        rows = [{"audio_filepath": "a.wav", "text": s, "speaker": s} for s in speakers]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "manifest.jsonl"

    corpus = manifest(tmp_path / "corpus", ["z"])
    monkeypatch.setattr(training, "corpus_manifest", lambda _: corpus)
    people = manifest(tmp_path / "people", list("abcdefghijklmn")).parent
    sets, scored = sets_to_train_and_score([Extra(people, 0.5, 12)], 0.5, random.Random(0))
    assert [sample.text for sample in sets[1][1]] == ["a", "b"]
    assert sorted(sample.text for sample in scored["people"]) == list("cdef")
    sets, scored = sets_to_train_and_score([Extra(people, 0.5)], 0.5, random.Random(0))
    assert len(sets[1][1]) == 14 and not scored
    with pytest.raises(OptionError, match="hold_out=8: the last 8 are for the final test"):
        sets_to_train_and_score([Extra(people, 0.5, 8)], 0.5, random.Random(0))


def test_as_many_clips_as_asked_for_have_noise() -> None:
    (sample,) = samples(1)
    clean = [heard_by_chance(sample, 0.0, np.random.default_rng(seed)) for seed in range(40)]
    some = [heard_by_chance(sample, 0.3, np.random.default_rng(seed)) for seed in range(40)]
    same = sum(np.array_equal(one, other) for one, other in zip(clean, some, strict=True))
    assert 20 <= same <= 35


def test_at_last_the_front_end_learns_faster(teacher: Any, tmp_path: Path) -> None:
    settings = replace(SETTINGS, front_end_share=3.0)
    stage = WholeStage(begun(tmp_path), settings, Models(teacher))
    student = stage.models.student
    stage.take_step(samples(2))
    rates = {
        id(parameter): group["lr"]
        for group in stage._optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == sum(1 for _ in student.parameters())
    slow = rates[id(student.lm_head.weight)]
    for name, parameter in student.named_parameters():
        is_front_end = name.startswith(("wavlm.feature_extractor", "wavlm.feature_projection"))
        assert rates[id(parameter)] == pytest.approx(3 * slow if is_front_end else slow)


def test_a_run_goes_on_from_what_another_has_learned(teacher: Any, tmp_path: Path) -> None:
    first = trained(tmp_path, teacher).student
    models = Models(teacher, read_student(tmp_path / "checkpoint"))
    key = "wavlm.encoder.layers.1.feed_forward.output_dense.weight"
    expected = first.state_dict()[key].half().float()
    assert torch.equal(models.student.state_dict()[key], expected)
    out = begun(tmp_path / "further")
    settings = replace(SETTINGS, blocks_steps=0, front_end_steps=0)
    for kind in STAGES:
        train(kind(out, settings, models), [(1.0, samples(3))], {"self": samples(1)})
    assert not torch.equal(models.student.state_dict()[key], expected)
    assert [path.parent.name for path in out.glob("*/state.pt")] == ["whole"]
