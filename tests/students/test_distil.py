"""A whole distillation of the tiny Whisper: what it trains on, resumes from, writes and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny_whisper import save_tiny_whisper
from two_processes import first_of_two

from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.students import distil
from speechquant.students.decoding import greedy_tokens
from speechquant.students.distil import (
    Distillation,
    Settings,
    Teacher,
    read_teacher,
    steps_of,
    train,
)
from speechquant.students.student import Shape, student_of
from speechquant.training.processes import ALONE, Processes
from speechquant.training.samples import Sample
from speechquant.training.schedule import learning_rate
from speechquant.training.whisper import encode

RATE_HZ = 16_000
TEXTS = ("go on", "stop", "look up")
SETTINGS = Settings(
    steps=4, warmup_steps=1, batch_seconds=4.0, save_every=2, score_every=2, peak_learning_rate=1e-2
)


@pytest.fixture(scope="module")
def teacher(tiny_whisper: Path) -> Teacher:
    return read_teacher(str(tiny_whisper), "en")


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


def new_run(
    teacher: Teacher, folder: Path, settings: Settings = SETTINGS, gates: str = "token"
) -> Distillation:
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text("{}")
    student = student_of(teacher.model, Shape(1, 1, gates))
    return Distillation(folder, settings, teacher, student, ALONE)


def trained(run: Distillation) -> dict[str, torch.Tensor]:
    train(run, [(1.0, samples(8))], {"dev": samples(3)})
    weights: dict[str, torch.Tensor] = run.student.state_dict()
    return weights


def test_the_learning_rate_falls_linearly_from_the_warm_up_on() -> None:
    settings = Settings(steps=100, warmup_steps=20, peak_learning_rate=1.0)
    found = [learning_rate(step, settings) for step in (0, 19, 20, 60, 99)]
    assert found == pytest.approx([1 / 20, 1.0, 1.0, 0.5, 1 / 80])


def test_a_killed_run_goes_on_where_it_was(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(new_run(teacher, tmp_path / "whole"))
    descend, calls = Distillation.descend, []

    def killed(run: Distillation, loss: torch.Tensor) -> None:
        calls.append(run.step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        descend(run, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "descend", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(new_run(teacher, tmp_path / "killed"))
    found = trained(new_run(teacher, tmp_path / "killed"))
    assert calls == [0, 1, 2, 3]
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    rows = [
        json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [2, 4]
    assert {"loss", "cross_entropy", "divergence", "wer_dev", "hours_left"} <= rows[0].keys()


def test_losses_fall_and_the_teacher_stays(teacher: Teacher, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    settings = replace(SETTINGS, steps=24, score_every=24, save_every=8, augmented_share=0.0)
    trained(new_run(teacher, tmp_path / "run", settings))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(torch.equal(before[key], value) for key, value in teacher.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_gated_and_an_ungated_student_hear_the_same(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, list[torch.Tensor]] = {"none": [], "token": []}
    features_of = Distillation._features
    for gates, seen in heard.items():
        run = new_run(teacher, tmp_path / gates, gates=gates)

        def kept(own: Any, *given: Any, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(features_of(own, *given))
            return seen[-1]

        monkeypatch.setattr(Distillation, "_features", kept)
        monkeypatch.setattr(Distillation, "transcribe", lambda _, some: ["go on"] * len(some))
        trained(run)
    assert len(heard["none"]) == SETTINGS.steps
    assert all(map(torch.equal, heard["none"], heard["token"]))


def test_scores_are_those_of_whole_chunks(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(teacher, tmp_path / "run")
    features_of, lengths = run._features, list[int]()

    def noted(waves: Any, length: int) -> torch.Tensor:
        lengths.append(length)
        return features_of(waves, length)

    monkeypatch.setattr(run, "_features", noted)
    run.transcribe(samples(10))
    assert lengths == [2 * RATE_HZ] * 2


def test_the_best_checkpoint_is_kept(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([50.0, 30.0, 40.0])
    monkeypatch.setattr(Distillation, "word_error_percent", lambda *_: next(rates))
    trained(new_run(teacher, tmp_path / "run", replace(SETTINGS, steps=6)))
    steps = {
        name: json.loads((tmp_path / "run" / name / "training-log.jsonl").read_text().splitlines()[-1])["step"]
        for name in ("best", "checkpoint")
    }  # fmt: skip
    assert steps == {"best": 4, "checkpoint": 6}
    best = load_whisper(str(tmp_path / "run" / "best"))
    assert best.model.config.attention_gates == "token"


def test_greedy_texts_are_those_of_whole_passes(teacher: Teacher) -> None:
    writing, model = teacher.writing, teacher.model
    features = torch.randn(3, 80, 200, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        hidden = encode(model, features)
        found = greedy_tokens(model, hidden, writing, 100)
        assert [row[:2] for row in found] == greedy_tokens(model, hidden, writing, 2)
        for row, states in zip(found, hidden, strict=True):
            tokens = list(writing.prompt)
            generation = writing.generation
            for _ in range(len(row)):
                logits = model(
                    encoder_outputs=(states[None],), decoder_input_ids=torch.tensor([tokens])
                ).logits[0, -1]
                logits[generation.end + 1 :] = -torch.inf
                logits[list(generation.suppressed)] = -torch.inf
                if len(tokens) == len(writing.prompt):
                    logits[list(generation.suppressed_first)] = -torch.inf
                tokens.append(int(logits.argmax()))
                if tokens[-1] == generation.end:
                    break
            heard = tokens[len(writing.prompt) :]
            assert row[: len(heard)] == heard


def test_processes_share_batches_as_one_accumulates_them() -> None:
    sets, settings = [(1.0, samples(8))], replace(SETTINGS, accumulate=2)
    alone = steps_of(sets, replace(settings, accumulate=4), ALONE, 1)
    both = [steps_of(sets, settings, Processes(2, rank), 1) for rank in (0, 1)]
    for _ in range(3):
        whole, first, second = next(alone), *map(next, both)
        texts = [[s.text for s in some] for some in (whole[0], whole[1], whole[2], whole[3])]
        assert texts == [
            [s.text for s in some] for pair in zip(first, second, strict=True) for some in pair
        ]


def data_set(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for index, sample in enumerate(samples(6)):
        soundfile.write(folder / f"{index}.wav", sample.wave, RATE_HZ)
        row = {"audio_filepath": f"{index}.wav", "text": sample.text, "speaker": str(index % 3)}
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def arguments(teacher: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        str(teacher), "--encoder-layers", "1", "--decoder-layers", "1", "--gates", "head",
        "--language", "en", "--data", f"{data},hold_out=1", "--out", str(out), "--threads", "1",
        "--steps", "2", "--warmup-steps", "1", "--save-every", "2", "--score-every", "2",
        "--batch-seconds", "3", *more,
    ]  # fmt: skip


def test_two_processes_are_one_that_accumulates(
    tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_set(tmp_path / "data")
    both = arguments(tiny_whisper, data, tmp_path / "two")
    with first_of_two("-m", "speechquant.students.distil", *both):
        monkeypatch.setattr(sys, "argv", ["distil", *both])
        distil.main()
    alone = arguments(tiny_whisper, data, tmp_path / "one", "--accumulate", "2")
    monkeypatch.setattr(sys, "argv", ["distil", *alone])
    distil.main()
    one, two = (
        torch.load(tmp_path / name / "state.pt", weights_only=True)["student"]
        for name in ("one", "two")
    )
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    settings = json.loads((tmp_path / "two" / "settings.json").read_text())
    assert (settings["processes"], settings["gates"]) == (2, "head")
    rows = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and rows[0]["wer_data"] > 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--encoder-layers", "9"], "--encoder-layers 9: the teacher's encoder has 2 layers"),
        (["--language", "fr"], "--language fr: "),
        (["--save-every", "0"], "--save-every 0: too low; give 1 or more"),
        (["--accumulate", "0"], "--accumulate 0: too low; give 1 or more"),
        (["--gates", "token", "--out", "{other}"], "holds a run with gates head, not token"),
        (["--data", "{nothing}"], "no such data"),
    ],
)
def test_bad_input_is_one_line(
    tiny_whisper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: list[str],
    said: str,
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    facts = {"teacher": "checkpoint", "encoder_layers": 1, "decoder_layers": 1, "gates": "head"}
    (other / "settings.json").write_text(json.dumps(facts))
    names = {"other": other, "nothing": tmp_path / "nothing"}
    more = [value.format(**names) for value in changed]
    given = arguments(tiny_whisper, data_set(tmp_path / "data"), tmp_path / "out", *more)
    monkeypatch.setattr(sys, "argv", ["distil", *given])
    with pytest.raises(SystemExit, match=said) as raised:
        distil.main()
    message = str(raised.value)
    assert message.startswith("error: ") and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_an_english_only_teacher_with_a_language(tmp_path: Path, monkeypatch: Any) -> None:
    teacher = save_tiny_whisper(tmp_path / "teacher")
    path = teacher / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_multilingual": False}))
    given = arguments(teacher, data_set(tmp_path / "data"), tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["distil", *given])
    with pytest.raises(SystemExit, match=r"error: --language en: .* knows one language alone"):
        distil.main()


def test_a_checkpoint_with_gates_of_an_unknown_kind(tmp_path: Path, monkeypatch: Any) -> None:
    teacher = save_tiny_whisper(tmp_path / "teacher", gates="head")
    path = teacher / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_gates": "clipped"}))
    given = arguments(teacher, data_set(tmp_path / "data"), tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["distil", *given])
    with pytest.raises(SystemExit, match=r"attention_gates is 'clipped'; token and head are known"):
        distil.main()
