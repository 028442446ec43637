"""The tables of gated attention: from students to records, and from records to the page."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tiny_whisper import save_tiny_whisper

from speechquant.benchmarks.papers.gated_tables import __main__ as command
from speechquant.benchmarks.papers.gated_tables.models import PaperModels
from speechquant.benchmarks.papers.gated_tables.outliers import (
    HeadValues,
    OutlierRecord,
    measure_outliers,
)
from speechquant.benchmarks.papers.gated_tables.page import Page
from speechquant.benchmarks.papers.gated_tables.run import Model, Pair, Run, model_of, pair_of
from speechquant.benchmarks.papers.gated_tables.sets import HeardSet, in_noise, over_telephone
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, SetFacts
from speechquant.benchmarks.pictures import outliers as outliers_pictures
from speechquant.calibrators.outliers import OutlierStatistics
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.core.wer import EditCounts
from speechquant.engines.probes import open_module_probe

RATE_HZ = 16_000
PLAIN, GATED, BASE = (
    Model(CheckpointFacts(name, name[0] * 16), layers, 2, gates)
    for name, layers, gates in (("plain", 6, None), ("gated", 6, "token"), ("base", 6, None))
)
TEST, CALIBRATION = SetFacts("read", "r" * 16, 4, 40.0, ()), SetFacts("cal", "c" * 16, 2, 20.0, ())
RUN = Run("a machine", 2, (Pair(PLAIN, GATED),), (BASE,), (TEST,), TEST, CALIBRATION)


def saved(folder: Path, noise: NDArray[np.float32], count: int) -> list[LabelledClip]:
    folder.mkdir(exist_ok=True)
    clips, lines = [], []
    for index in range(count):
        path = folder / f"{index}.wav"
        soundfile.write(path, noise[index * 4000 : index * 4000 + RATE_HZ], RATE_HZ)
        clips.append(LabelledClip(path, "w one dog", speaker=str(index)))
        row = {"audio_filepath": path.name, "text": "w one dog", "speaker": str(index)}
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return clips


def words(*errors: int) -> WordRecord:
    return WordRecord(
        tuple(EditCounts(count, 0, 0, 10) for count in errors), ("",) * 4, 4.0, 40.0, 9
    )


def outliers(kurtosis: float, share: float) -> OutlierRecord:
    head = HeadValues(((1.0,),), ((2.0,),), ((2.0,),))
    return OutlierRecord(
        3, 16, kurtosis, 66.8, "fc2", "out_proj", 0.001, ((5, share), (2, 0.1)), head
    )  # fmt: skip


def rows_of(lines: list[str], title: str) -> list[list[str]]:
    after = lines[lines.index(title) + 2 :]
    table = [line for line in after[: after.index("")] if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]


def test_the_page_of_some_records(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    for model, kurtosis, share in ((PLAIN, 105.4, 0.15), (GATED, 42.8, 0.03)):
        records.write(RUN.outliers_name(model), outliers(kurtosis, share))
    for model, bits, errors in (
        (PLAIN, None, (1, 1, 1, 1)), (GATED, None, (1, 1, 1, 0)),
        (PLAIN, 8, (2, 2, 2, 2)), (GATED, 8, (1, 1, 1, 1)),
    ):  # fmt: skip
        records.write(RUN.words_name(model, TEST, bits), words(*errors))
    lines = Page(RUN, records, tmp_path).lines()
    assert rows_of(lines, "## Table 1: outliers before quantization") == [
        ["base", "6", "none", "absent", "absent", "absent"],
        ["plain", "6", "none", "105.4", "66.8", "fc2"],
        ["gated", "6", "token", "42.8", "66.8", "fc2"],
    ]
    table = rows_of(lines, "## Table 2: words before and after quantization")
    assert table[:4] == [
        ["read", "float", "no", "10.00"],
        ["read", "float", "yes", "7.50"],
        ["read", "8 bits", "no", "20.00 (+10.00: +10.00 to +10.00)"],
        ["read", "8 bits", "yes", "10.00 (+2.50: +0.00 to +7.50)"],
    ]
    assert table[4:] == [["read", f"{b} bits", g, "absent"] for b in (6, 5) for g in ("no", "yes")]
    changes = rows_of(lines, "## What gates change")
    assert changes[1] == ["read", "8 bits", "(-10.00: -10.00 to -10.00)"]
    pictures = {path.name for path in (tmp_path / "gated-attention").iterdir()}
    assert len(pictures) == 3
    assert all(any(f"gated-attention/{name}" in line for line in lines) for name in pictures)
    assert any("hold 25 % of the outliers" in line for line in lines)


def test_the_page_of_no_records(tmp_path: Path) -> None:
    lines = Page(RUN, Records(tmp_path / "records"), tmp_path).lines()
    assert all(row[-1] == "absent" for row in rows_of(lines, "## What gates change"))
    assert not (tmp_path / "gated-attention").exists()


def test_records_depend_on_what_they_say() -> None:
    names = {RUN.words_name(model, TEST, bits) for model, test, bits in RUN.words()}
    assert len(names) == 2 * 4
    other = SetFacts("cal", "x" * 16, 2, 20.0, ())
    changed = Run("a machine", 2, RUN.pairs, RUN.others, RUN.tests, TEST, other)
    assert changed.words_name(GATED, TEST, None) == RUN.words_name(GATED, TEST, None)
    assert changed.words_name(GATED, TEST, 8) != RUN.words_name(GATED, TEST, 8)


@pytest.mark.parametrize(
    ("plain", "gated", "said"),
    [
        (PLAIN, BASE, "give the one without gates, then the one with gates"),
        (GATED, PLAIN, "give the one without gates, then the one with gates"),
        (PLAIN, Model(GATED.checkpoint, 3, 2, "token"), "of different sizes; give two of one size"),
        (PLAIN, replace(GATED, teacher="base", seed=1), "of different teachers or seeds"),
    ],
)
def test_what_is_no_pair(plain: Model, gated: Model, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        pair_of(plain, gated)


def test_what_a_checkpoint_is_told_by_its_configuration(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    gated = save_tiny_whisper(tmp_path / "student", gates="head")
    model = model_of("student", gated)
    assert (model.encoder_layers, model.decoder_layers, model.gates) == (2, 2, "head")
    (gated / "training-settings.json").write_text('{"teacher": "base", "seed": 1}')
    pair = Pair(model_of("student", gated), GATED)
    assert (pair.size, Pair(model, GATED).size) == ("2 layers of base, seed 1", "2 layers")
    with pytest.raises(OptionError, match="is no Whisper checkpoint"):
        model_of(str(tiny_checkpoint), tiny_checkpoint)


def test_outliers_are_those_of_the_command(
    whisper_bundle: Bundle, tmp_path: Path, noise: NDArray[np.float32]
) -> None:
    clips = saved(tmp_path / "data", noise, 2)
    record = measure_outliers(whisper_bundle, clips, 1)
    statistics = OutlierStatistics()
    with open_module_probe(whisper_bundle, 1) as probe:
        for clip in clips:
            statistics.add(probe.outputs_of(clip))
    rows = {row.module: row for row in statistics.rows()}
    attended = [row.kurtosis for name, row in rows.items() if name.endswith("out_proj")]
    assert record.attentions == len(attended) == 6
    assert record.kurtosis == pytest.approx(np.mean(attended))
    assert record.infinity_norm == max(row.infinity_norm for row in rows.values())
    assert record.module == "decoder.layers.1.self_attn.out_proj"
    head = record.drawn_head()
    assert head.probabilities @ head.values == pytest.approx(head.mixed, abs=1e-2)


def test_the_paper_s_scheme(
    whisper_bundle: Bundle, tmp_path: Path, noise: NDArray[np.float32]
) -> None:
    models = PaperModels(
        "tiny", tmp_path, saved(tmp_path / "data", noise, 3), tmp_path / "models", 1
    )
    models.__dict__["float_bundle"] = whisper_bundle
    candidate, size_bytes = models.ours(6)
    assert size_bytes < whisper_bundle.size_bytes
    document = json.loads((candidate.folder / "scales.json").read_text())
    assert (document["method"], document["symmetric"]) == ("ema", False)
    assert document["bits"] == {"weights": 8, "activations": 6}
    assert document["weight_scales"] == "tensor"
    assert set(document["float_activations"]) == {"encoder.last_projection", "cross"}
    assert not document["float_layers"]
    assert models.ours(6)[0] == candidate
    assert models.ours(None)[0].folder == whisper_bundle.folder


def test_telephone_and_noise(noise: NDArray[np.float32]) -> None:
    seconds = np.arange(RATE_HZ) / RATE_HZ
    low, high = (
        0.5 * np.sin(2 * np.pi * hertz * seconds).astype(np.float32) for hertz in (440, 6000)
    )
    narrow, rate = over_telephone(low + high, 0)
    assert (len(narrow), rate) == (8000, 8000)
    assert len(np.unique(np.abs(narrow))) <= 129
    spectrum = np.abs(np.fft.rfft(narrow))
    assert spectrum[440] > 1900  # half of 8,000 samples at half of full scale
    assert np.delete(spectrum, range(438, 443)).max() < 0.05 * spectrum[440]
    noisy, rate = in_noise(low, 3)
    assert rate == RATE_HZ and np.array_equal(noisy, in_noise(low, 3)[0])
    scale = np.dot(noisy, low) / np.dot(low, low)
    left = noisy - scale * low
    assert 10 * np.log10(np.mean((scale * low) ** 2) / np.mean(left**2)) == pytest.approx(
        10, abs=0.5
    )


def test_sets_are_parsed_thinned_and_made_once(tmp_path: Path, noise: NDArray[np.float32]) -> None:
    saved(tmp_path / "data", noise, 4)
    asked = HeardSet.parse(f"phone={tmp_path / 'data'},limit=1,hold_out=2,as=telephone")
    (clip,) = asked.clips(tmp_path / "sets")
    assert (clip.speaker, clip.text) == ("2", "w one dog")
    assert len(read_audio(clip.audio, RATE_HZ)) == RATE_HZ
    before = clip.path.stat().st_mtime_ns
    assert asked.clips(tmp_path / "sets") == [clip]
    assert clip.path.stat().st_mtime_ns == before
    for text in ("data", "a=b,as=underwater", "a=b,clips=3", "a="):
        with pytest.raises(ValueError, match=r"no test set|unpack"):
            HeardSet.parse(text)


class Heard:
    """Stands for the process of a candidate; counts what it is asked."""

    asked = 0

    def __init__(self, candidate: Any) -> None:
        self.candidate = candidate

    def __enter__(self) -> Heard:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, waves: list[Any]) -> tuple[list[str], float]:
        Heard.asked += 1
        return ["w 1 dog"], 0.5


def test_from_students_to_the_page_and_again(
    tmp_path: Path, whisper_bundle: Bundle, tiny_whisper: Path, noise: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = tmp_path / "data"
    saved(data, noise, 3)
    plain = Path(shutil.copytree(tiny_whisper, tmp_path / "plain"))
    gated = save_tiny_whisper(tmp_path / "gated", gates="token")
    # Exporting takes long, and is tested elsewhere.
    monkeypatch.setattr(PaperModels, "float_bundle", whisper_bundle)
    monkeypatch.setattr("speechquant.benchmarks.papers.real_whisper.measure.Turns", Heard)
    given = [
        "tables", str(tiny_whisper), "--pair", str(plain), str(gated), "--test", f"read={data}",
        "--test", f"loud={data},limit=1,as=noise", "--calibration", str(data), "--threads", "1",
        "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    # Two students, float and three widths; each asks once before it counts.
    assert Heard.asked == 2 * 4 * (4 + 2)
    page = (tmp_path / "out" / "gated-attention.md").read_text()
    assert "absent" not in page
    assert "| read | 5 bits | yes | 0.00 (+0.00: +0.00 to +0.00) |" in page
    monkeypatch.setattr(outliers_pictures, "save_figure", lambda *_: None)  # drawn above
    command.main()
    monkeypatch.setattr(sys, "argv", [*given[:1], "--render-only", *given[-4:]])
    command.main()
    assert Heard.asked == 2 * 4 * (4 + 2)
    assert (tmp_path / "out" / "gated-attention.md").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pair", "{plain}", "{plain}"], "give the one without gates, then the one with gates"),
        (["--pair", "{plain}", "{nothing}"], "nothing: no such checkpoint folder"),
        (["{plain}", "--test", "read={data}"], "give each set a name of its own"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, tiny_whisper: Path, noise: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    data = tmp_path / "data"
    saved(data, noise, 1)
    names = {"plain": tiny_whisper, "nothing": tmp_path / "nothing", "data": data}
    given = [one.format(**names) for one in arguments]
    more = ["--test", f"read={data}", "--calibration", str(data), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["tables", *given, *more, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=said) as raised:
        command.main()
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
