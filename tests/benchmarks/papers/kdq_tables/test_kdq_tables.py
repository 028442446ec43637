"""Whisper-KDQ's tables: the paper's rows and sizes, and the page of some records."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_whisper import save_tiny_whisper

from speechquant.benchmarks.papers.kdq_tables import __main__ as kdq_tables
from speechquant.benchmarks.papers.kdq_tables.page import Page
from speechquant.benchmarks.papers.kdq_tables.rows import (
    LAST_ROW,
    Entry,
    Shape,
    rounded_share,
    row_name,
    row_of,
    shape_of,
)
from speechquant.benchmarks.papers.kdq_tables.run import Errors, Hearing, Run
from speechquant.benchmarks.papers.real_whisper.records import Records
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, SetFacts
from speechquant.core.errors import OptionError
from speechquant.core.wer import EditCounts
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.students.kdq.losses import layers_to_quantize

# The published models; their parameters are those of transformers.
BASE = Shape(6, 6, 512, 8, 72_593_920, 6 * 16 * 512**2, 51_865 * 512)
TINY = Shape(4, 4, 384, 6, 37_760_640, 4 * 16 * 384**2, 51_865 * 384)
TEST = SetFacts("read", "r" * 16, 2, 3600.0, ())


@pytest.mark.parametrize(
    ("shape", "share", "paper"),
    [
        (BASE, 0.0, 139),
        (BASE, 1.0, 89),
        (BASE, 0.5, 114),
        (TINY, 0.0, 72),
        (TINY, 1.0, 44),
        (TINY, 0.5, 58),
    ],
)
def test_sizes_are_those_of_the_paper(shape: Shape, share: float, paper: int) -> None:
    assert abs(shape.size_mib(share) - paper) <= 0.6


def test_the_shape_of_a_checkpoint(tmp_path: Path) -> None:
    folder = save_tiny_whisper(tmp_path / "tiny")
    model: Any = load_whisper(str(folder)).model
    layers = model.model.decoder.layers
    linear = [m.weight for layer in layers for m in layer.modules() if hasattr(m, "in_features")]
    shape = shape_of(folder)
    assert shape.decoder_linear == sum(weight.numel() for weight in linear)
    assert shape.embedding == model.model.decoder.embed_tokens.weight.numel()
    assert shape.parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    ("settings", "number", "name", "share"),
    [
        (("none", "all", "none", 0.0), 3, "+ fine-tuning", 0.0),
        (("none", "all", "none", 0.5), 4, "KD logits", 0.0),
        (("none", "all", "restrained", 0.5), 7, "+ restrained dynamic matching", 0.0),
        (("apot", "all", "none", 0.5), 8, "KDQ logits APoT, all layers", 1.0),
        (("apot", "top50", "static", 0.5), 13, "+ static matching", 0.5),
        (("uniform", "all", "dynamic", 0.5), 18, "+ dynamic matching", 1.0),
        (("uniform", "all", "restrained", 0.5), LAST_ROW, "+ restrained dynamic matching", 1.0),
    ],
)
def test_a_run_is_a_row(
    settings: tuple[str, str, str, float], number: int, name: str, share: float
) -> None:
    names = ("quantizer", "layers", "matching", "distillation_weight")
    assert row_of(dict(zip(names, settings, strict=True)), Path("run")) == number
    assert (row_name(number), rounded_share(number, 4)) == (name, share)


def test_half_of_three_layers_are_two() -> None:
    assert rounded_share(15, 3) == pytest.approx(len(layers_to_quantize([1.0, 2.0, 3.0], 0.5)) / 3)


def test_a_run_of_another_training_is_refused() -> None:
    with pytest.raises(OptionError, match="run: is no run of speechquant"):
        row_of({"gates": "token"}, Path("run"))


def test_the_page_of_some_records(tmp_path: Path) -> None:
    teacher = Entry(1, 0, CheckpointFacts("base", "b" * 16), BASE)
    shape = replace(BASE, decoder_layers=4, parameters=60_000_000, decoder_linear=4 * 16 * 512**2)
    uniform = Entry(19, 4, CheckpointFacts("best", "u" * 16), shape)
    unheard = Entry(4, 4, CheckpointFacts("best", "k" * 16), shape)
    run, records = Run("a machine", 1, (teacher, uniform, unheard), (TEST,)), Records(tmp_path)
    words = (EditCounts(1, 0, 0, 10), EditCounts(0, 0, 0, 10))
    characters = (EditCounts(1, 1, 1, 100),) * 2
    for entry in (teacher, uniform):
        records.write(Hearing(entry, TEST).record, Errors(words, characters))
    assert [hearing.entry.number for hearing in run.missing_from(records)] == [4]
    lines = Page(run, records).lines()
    rows = {cells[1].strip(): cells for line in lines if (cells := line.split("|"))[1:]}
    assert [rows[str(number)][2].strip() for number in (1, 4)] == ["Teacher", "KD logits"]
    found = [cell.strip() for cell in rows["19"][3:-1]]
    size = (2 * 60_000_000 - 4 * 16 * 512**2 - 51_865 * 512) / 2**20
    assert found == ["3.00", "5.00", "3.00", f"{size:.1f}", f"{BASE.size_mib() / size:.2f}"]
    assert [cell.strip() for cell in rows["4"][3:6]] == ["absent"] * 3
    assert [cell.strip() for cell in rows["5"][3:-1]] == ["absent"] * 5


def cells_after(lines: list[str], title: str) -> list[list[str]]:
    """Return the cells of the first table after a title, without its first two rows."""
    rest = lines[lines.index(title) :]
    rows = [line.strip("| ").split(" | ") for line in rest if line.startswith("| ")]
    heading = next(index for index, line in enumerate(rest) if line.startswith("| "))
    return rows[1 : rest.index("", heading) - heading - 1]


def test_seeds_orderings_and_what_is_used(tmp_path: Path) -> None:
    calibration = replace(TEST, name="cal", key="c" * 16)
    entries = [Entry(1, 0, CheckpointFacts("base", "b" * 16), BASE)]
    entries.append(Entry(2, 4, CheckpointFacts("untrained", "v" * 16), BASE))
    for seed in (0, 1):
        for number in (11, 19):
            facts = CheckpointFacts("best", f"{number}-{seed}")
            entries.append(Entry(number, 4, facts, BASE, seed))
    run, records = Run("a machine", 1, tuple(entries), (TEST,), calibration), Records(tmp_path)
    sizes = [len(list(run.hearings(entry))) for entry in entries]
    assert sizes == [1, 1, 1, 3, 1, 3]
    lengths = (10, 30)
    for entry in entries:
        for hearing in run.hearings(entry):
            errors = {11: 4, 19: 2}.get(entry.number, 0) + entry.seed
            errors += {"cpu": 1, "openvino": 2}.get(hearing.provider or "", 0)
            words = tuple(EditCounts(errors, 0, 0, length) for length in lengths)
            records.write(hearing.record, Errors(words, words, 5_000_000))
    assert list(run.missing_from(records)) == []
    lines = Page(run, records).lines()
    numbers = [row[0] for row in cells_after(lines, "## Table 2: a decoder of 4 layers, seed 1")]
    assert numbers == ["1", "2", "11", "19"]
    numbers = [row[0] for row in cells_after(lines, "## Table 2: a decoder of 4 layers, seed 0")]
    assert numbers == [str(number) for number in range(1, LAST_ROW + 1)]
    orderings = cells_after(lines, "## The paper's orderings")
    assert [row[:4] for row in orderings] == [
        ["uniform over APoT, restrained", "11, 19", "4", seed] for seed in "01"
    ]
    # 4 errors less in 40 words; a clip of 10 and one of 30, each with 2 less.
    assert orderings[0][4] == "-10.00: -20.00 to -6.67"
    used = cells_after(lines, "## As used: W8A8")
    unheard = replace(entries[-1], checkpoint=CheckpointFacts("best", "19-2"), seed=2)
    wider = replace(run, entries=(*entries, unheard))
    assert cells_after(Page(wider, records).lines(), "## As used: W8A8") == used
    assert used[0] == [
        "19", "4", "0", "10.00", "15.00 (+5.00: +3.33 to +10.00)",
        "20.00 (+10.00: +6.67 to +20.00)", "5.0",
    ]  # fmt: skip


def test_without_calibration_nothing_is_quantized(tmp_path: Path) -> None:
    uniform = Entry(19, 4, CheckpointFacts("best", "u" * 16), BASE)
    run = Run("a machine", 1, (uniform,), (TEST,))
    assert [hearing.provider for hearing in run.hearings(uniform)] == [None]
    assert "## As used: W8A8" not in Page(run, Records(tmp_path)).lines()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("teacher", "has no best/ yet; train it to its first"),
        ("base", "a student of base, not of .*teacher; give it a table of its own"),
    ],
)
def test_a_run_without_a_best_checkpoint_or_of_another_teacher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    teacher, run = save_tiny_whisper(tmp_path / "teacher"), tmp_path / "run"
    run.mkdir()
    settings = {"quantizer": "none", "layers": "all", "matching": "none", "decoder_layers": 1}
    settings = {**settings, "seed": 0, "teacher": name}
    (run / "settings.json").write_text(json.dumps(settings))
    given = [str(teacher), str(run), "--test", f"read={tmp_path}", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["kdq_tables", *given])
    with pytest.raises(SystemExit, match=f"error: .*run: {said}"):
        kdq_tables.main()
