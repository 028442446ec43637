"""Which layers a student takes from its teacher, and what is written of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_whisper import save_tiny_whisper

from speechquant.core.errors import OptionError
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.students.student import (
    Shape,
    evenly_from_the_first,
    first_to_last,
    save_student,
    student_of,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    return load_whisper(str(save_tiny_whisper(folder, encoder_layers=4, decoder_layers=3))).model


def logits(model: Any) -> torch.Tensor:
    features = torch.randn(2, 80, 200, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[301, 5, 9], [301, 40, 2]])
    with torch.inference_mode():
        given: torch.Tensor = model(features, decoder_input_ids=tokens).logits
    return given


def test_every_fourth_layer_of_the_paper_s_encoder() -> None:
    assert evenly_from_the_first(32, 8) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert evenly_from_the_first(32, 16) == list(range(0, 32, 2))
    assert evenly_from_the_first(32, 24)[:7] == [0, 1, 2, 4, 5, 6, 8]
    assert evenly_from_the_first(4, 3) == [0, 1, 2]


def test_the_first_and_the_last_layer_of_the_decoder() -> None:
    assert first_to_last(32, 2) == [0, 31]
    assert first_to_last(6, 3) == [0, 2, 5]
    assert first_to_last(6, 1) == [0]
    assert first_to_last(4, 4) == [0, 1, 2, 3]


def test_a_student_has_copies_of_its_teacher_s_layers(teacher: Any) -> None:
    student = student_of(teacher, Shape(2, 2, "none"))
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 2)
    for part, pairs in (("encoder", [(0, 0), (1, 2)]), ("decoder", [(0, 0), (1, 2)])):
        for own, given in pairs:
            mine = getattr(student.model, part).layers[own].fc1.weight
            theirs = getattr(teacher.model, part).layers[given].fc1.weight
            assert torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()
    assert torch.equal(student.model.decoder.embed_tokens.weight, student.proj_out.weight)


def test_with_all_layers_a_student_is_its_teacher(teacher: Any) -> None:
    whole = student_of(teacher, Shape(4, 3, "none"))
    assert torch.equal(logits(whole), logits(teacher))
    gated = student_of(teacher, Shape(4, 3, "token"))
    assert not torch.allclose(logits(gated), logits(teacher), atol=1e-3)
    for name, parameter in gated.named_parameters():
        if name.endswith(".gate.bias"):
            parameter.data += 100.0  # wide open
    assert torch.allclose(logits(gated), logits(teacher), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            Shape(5, 2, "none"),
            "--encoder-layers 5: the teacher's encoder has 4 layers; give 1 to 4",
        ),
        (
            Shape(4, 0, "none"),
            "--decoder-layers 0: the teacher's decoder has 3 layers; give 1 to 3",
        ),
    ],
)
def test_layers_that_a_teacher_does_not_have(teacher: Any, shape: Shape, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        student_of(teacher, shape)


def test_a_gated_teacher_has_students_of_its_own_kind(tmp_path: Path) -> None:
    teacher = load_whisper(str(save_tiny_whisper(tmp_path / "teacher", gates="head"))).model
    with pytest.raises(OptionError, match="--gates none: the teacher has gates; give --gates head"):
        student_of(teacher, Shape(1, 1, "none"))
    assert torch.equal(logits(student_of(teacher, Shape(2, 2, "head"))), logits(teacher))


def test_a_saved_student_is_a_checkpoint(teacher: Any, tiny_whisper: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_whisper, tmp_path / "teacher"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["alignment_heads"] = [[2, 0]]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    student = student_of(teacher, Shape(2, 2, "token"))
    save_student(student, folder, tmp_path / "student")
    assert next(student.parameters()).dtype == torch.float32
    checkpoint = load_whisper(str(tmp_path / "student"))
    largest = float(logits(student).abs().max())
    assert torch.allclose(logits(checkpoint.model), logits(student), atol=0.01 * largest)
    assert checkpoint.model.config.attention_gates == "token"
    assert checkpoint.generation == load_whisper(str(folder)).generation
    assert "alignment_heads" not in (tmp_path / "student" / "generation_config.json").read_text()
