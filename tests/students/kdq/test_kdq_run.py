"""A whole KDQ training of the tiny Whisper: what it learns, keeps, resumes from and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_whisper import save_tiny_whisper

from speechquant.core.weights import read_trained_weights
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.students.distil import Teacher, read_teacher
from speechquant.students.kdq import __main__ as command
from speechquant.students.kdq.encodings import Encodings, heard_as, in_use
from speechquant.students.kdq.layers import (
    decoded,
    is_rounded,
    latent_weights,
    layers_of,
    weight_costs,
)
from speechquant.students.kdq.quantizers import Quantizer
from speechquant.students.kdq.run import KdqRun, Pair, train
from speechquant.students.kdq.settings import APOT, NO_QUANTIZER, UNIFORM, Plan, Settings
from speechquant.students.student import Shape, student_of
from speechquant.training.samples import Sample

RATE_HZ = 16_000
TEXTS = ("go on", "stop", "look up")
SETTINGS = Settings(
    steps=4, warmup_steps=1, batch_seconds=4.0, save_every=2, score_every=2,
    peak_learning_rate=1e-3, quantize_from=1, match_every=2, variants=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_whisper(tmp_path_factory.mktemp("kdq") / "teacher", decoder_layers=4)


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return read_teacher(str(teacher_folder), "en")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample((3000 * rng.standard_normal(9_000 + 2_000 * i)).astype(np.int16), TEXTS[i % 3])
        for i in range(count)
    ]


def new_run(teacher: Teacher, folder: Path, plan: Plan, settings: Settings = SETTINGS) -> KdqRun:
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text("{}")
    student = student_of(teacher.model, Shape(2, 2, "none"))
    return KdqRun(folder, settings, plan, Pair(teacher, student), folder.parent / "encoded")


def trained(run: KdqRun) -> dict[str, torch.Tensor]:
    train(run, [(1.0, samples(6))], {"dev": samples(3)})
    return {**run.student.state_dict(), **run.guide.state_dict()}


def log_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("quantizer", [APOT, NO_QUANTIZER])
def test_a_killed_run_goes_on_where_it_was(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    plan = Plan("restrained", quantizer, 0.5)
    expected = trained(new_run(teacher, tmp_path / "whole", plan))
    descend, calls = KdqRun.descend, []

    def killed(run: KdqRun, loss: torch.Tensor) -> None:
        calls.append(run.step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        descend(run, loss)

    with monkeypatch.context() as patch:
        patch.setattr(KdqRun, "descend", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(new_run(teacher, tmp_path / "killed", plan))
    found = trained(new_run(teacher, tmp_path / "killed", plan))
    assert calls == [0, 1, 2, 3]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("matching", ["static", "dynamic", "restrained"])
def test_the_encoder_and_the_teacher_stay_and_w_a_learns(
    teacher: Teacher, tmp_path: Path, matching: str
) -> None:
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    run = new_run(teacher, tmp_path / "run", Plan(matching, UNIFORM, 1.0))
    encoder = {key: value.clone() for key, value in run.student.model.encoder.state_dict().items()}
    trained(run)
    assert all(torch.equal(before[key], value) for key, value in teacher.model.state_dict().items())
    after = run.student.model.encoder.state_dict()
    assert all(torch.equal(encoder[key], after[key]) for key in encoder)
    assert not torch.equal(run.guide.transform.weight, torch.eye(32))


def test_losses_fall(teacher: Teacher, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=40, save_every=10, score_every=40)
    trained(new_run(teacher, tmp_path / "run", Plan("static", UNIFORM, 1.0), settings))
    first, *_, last = log_of(tmp_path / "run")
    for name in ("cross_entropy", "prediction", "hidden"):
        assert float(str(last[name])) < float(str(first[name]))
    assert {"wer_dev", "cer_dev"} <= last.keys()


def test_half_of_the_layers_are_those_with_the_lowest_distillation_loss(
    teacher: Teacher, tmp_path: Path
) -> None:
    run = new_run(teacher, tmp_path / "run", Plan("none", APOT, 0.5))
    trained(run)
    sums = run.guide.hidden_sums.tolist()
    assert [is_rounded(layer) for layer in layers_of(run.student)] == [
        each == min(sums) for each in sums
    ]
    assert log_of(tmp_path / "run")[-1]["rounded_layers"] == [sums.index(min(sums))]


def test_nothing_is_scored_before_it_is_rounded(teacher: Teacher, tmp_path: Path) -> None:
    settings = replace(SETTINGS, quantize_from=3)
    trained(new_run(teacher, tmp_path / "run", Plan("none", UNIFORM, 1.0), settings))
    first, second = log_of(tmp_path / "run")
    assert "wer_dev" not in first and "wer_dev" in second


def test_the_costs_of_weights_are_least_for_the_layers_that_were_copied(teacher: Teacher) -> None:
    student = student_of(teacher.model, Shape(2, 2, "none"))
    costs = weight_costs(student, teacher.model, torch.eye(32), Quantizer(UNIFORM))
    assert costs.shape == (2, 4)
    assert costs.argmin(1).tolist() == [0, 3]
    own, other = latent_weights(layers_of(student)[1]), latent_weights(layers_of(teacher.model)[2])
    quantizer = Quantizer(UNIFORM)
    total = sum(
        (other[name] - quantizer.rounded(weight).values).abs().sum() for name, weight in own.items()
    )
    assert costs[1, 2] == pytest.approx(float(total) / sum(each.numel() for each in own.values()))


def test_the_states_of_layers_are_those_that_transformers_gives(teacher: Teacher) -> None:
    hidden = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(1))
    given = torch.tensor([[301, 5, 6]])
    with torch.no_grad():
        logits, states = decoded(teacher.model, hidden, given)
        whole = teacher.model(
            encoder_outputs=(hidden,), decoder_input_ids=given, output_hidden_states=True
        )
    assert torch.allclose(logits, whole.logits)
    # The last one is normed there.
    normed = [*states[:-1], teacher.model.model.decoder.layer_norm(states[-1])]
    assert all(map(torch.equal, normed, whole.decoder_hidden_states[1:]))


@pytest.mark.parametrize(("quantizer", "share"), [(UNIFORM, 1.0), (APOT, 0.5), (NO_QUANTIZER, 1.0)])
def test_a_checkpoint_holds_the_student_as_it_was_scored(
    teacher: Teacher, tmp_path: Path, quantizer: str, share: float
) -> None:
    run = new_run(teacher, tmp_path / "run", Plan("none", quantizer, share))
    trained(run)
    folder = tmp_path / "run" / "checkpoint"
    model = load_whisper(str(folder)).model
    weights = read_trained_weights(folder)
    layers = int(2 * share) if quantizer != NO_QUANTIZER else 0
    assert len(weights) == 10 * layers
    kept = model.state_dict()
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(weight.values), kept[name])
        assert weight.codes.dtype == np.uint8 and weight.is_uniform == (quantizer == UNIFORM)
    hidden = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(1))
    given = torch.tensor([[301, 5, 6]])
    with torch.no_grad():
        run.student.eval()
        ours, theirs = decoded(run.student, hidden, given)[0], decoded(model, hidden, given)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_encoding_is_made_once_and_masked_in_later_variants(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, chunk = samples(1)[0], 2 * RATE_HZ
    encodings = Encodings(tmp_path, teacher.model, "cpu")
    clips = [heard_as(sample, variant, 3, chunk) for variant in range(3)]
    first = [encodings.together([clip]) for clip in clips]
    assert all(not torch.equal(first[0], other) for other in first[1:])
    assert not torch.equal(first[1], first[2])
    # In this model's chunk of 2 s the short variants fill it too.
    assert torch.equal(encodings.together([in_use(sample, chunk)]), first[0])
    again = Encodings(tmp_path, teacher.model, "cpu")
    monkeypatch.setattr(again, "_made", lambda *_: pytest.fail("made again"))
    assert all(torch.equal(again.together([c]), f) for c, f in zip(clips, first, strict=True))


@pytest.mark.parametrize(
    ("samples_of_clip", "variant", "seconds"),
    [
        (RATE_HZ, 0, 3),
        (2 * RATE_HZ, 0, 3),
        (2 * RATE_HZ + 1, 1, 6),
        (29 * RATE_HZ, 0, 30),
        (9, 3, 30),
    ],
)
def test_clips_are_padded_to_few_lengths_and_the_last_variant_to_a_chunk(
    samples_of_clip: int, variant: int, seconds: int
) -> None:
    clip = heard_as(Sample(np.zeros(samples_of_clip, np.int16), "go"), variant, 4, 30 * RATE_HZ)
    assert (clip.samples, clip.is_masked) == (seconds * RATE_HZ, variant > 0)


def arguments(teacher: Path, folder: Path, *more: str) -> list[str]:
    data = folder / "data"
    data.mkdir()
    lines = []
    for index, sample in enumerate(samples(6)):
        soundfile.write(data / f"{index}.wav", sample.wave, RATE_HZ)
        row = {"audio_filepath": f"{index}.wav", "text": sample.text, "speaker": str(index % 3)}
        lines.append(json.dumps(row))
    (data / "manifest.jsonl").write_text("\n".join(lines))
    return [
        str(teacher), "--decoder-layers", "2", "--language", "en", "--data", f"{data},hold_out=1",
        "--out", str(folder / "out"), "--threads", "1", "--steps", "3", "--quantize-from", "1",
        "--save-every", "3", "--batch-seconds", "3", *more,
    ]  # fmt: skip


def test_the_command(teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(
        teacher_folder,
        tmp_path,
        "--matching",
        "restrained",
        "--quantizer",
        "apot",
        "--layers",
        "top50",
    )
    monkeypatch.setattr(sys, "argv", ["kdq", *given])
    command.main()
    (row,) = log_of(tmp_path / "out")
    assert row["step"] == 3 and {"wer_data", "cer_data", "learns_from"} <= row.keys()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["matching"], settings["layers"]) == ("restrained", "top50")
    assert len(read_trained_weights(tmp_path / "out" / "best")) == 10


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--decoder-layers", "5"], "--decoder-layers 5: the teacher's decoder has 4 layers"),
        (
            ["--quantizer", "apot", "--quantize-from", "3"],
            "--quantize-from 3: the run ends at step 3",
        ),
        (["--layers", "top50"], "--layers top50: nothing is quantized"),
        (["--variants", "0"], "--variants 0: too low"),
        (["--temperature", "0"], "--temperature 0.0: give a number above 0"),
    ],
)
def test_bad_input_is_one_line(
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdq", *arguments(teacher_folder, tmp_path, *changed)])
    with pytest.raises(SystemExit, match=said) as raised:
        command.main()
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
