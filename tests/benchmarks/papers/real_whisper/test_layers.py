from __future__ import annotations

from pathlib import Path

from real_whisper_facts import CHECKPOINT, RUN, rows_of

from speechquant.benchmarks.papers.real_whisper.layers import (
    ActivationFacts,
    LayersRecord,
    layers_record_name,
)
from speechquant.benchmarks.papers.real_whisper.layers_page import layer_lines, layer_table
from speechquant.benchmarks.papers.real_whisper.records import Records


def activation(number: int) -> ActivationFacts:
    return ActivationFacts(
        f"layers.{number}.fc2.input",
        f"encoder.block.{number}",
        40.0 * number,
        0.5,
        7,
        2,
        number / 100,
        1e-4,
    )


RECORD = LayersRecord(
    16, tuple(activation(number) for number in (3, 1, 12, 5, 7, 2, 4, 6, 8, 9, 10, 11))
)


def test_the_ten_whose_products_err_most() -> None:
    rows = rows_of(layer_table(RECORD))
    names = [name for name in rows if name.startswith("`layers")]
    assert names == [f"`layers.{number}.fc2.input`" for number in range(12, 2, -1)]
    assert rows["`layers.5.fc2.input`"] == ["200.0", "0.50", "400", "7", "2", "0.05000", "0.00010"]


def test_the_section_on_layers_has_a_picture(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    assert "absent" in layer_lines(RUN, records, tmp_path)
    assert not (tmp_path / "real-whisper").exists()
    records.write(layers_record_name(RUN, CHECKPOINT), RECORD)
    lines = layer_lines(RUN, records, tmp_path)
    assert "![errors by activation](real-whisper/whisper-nano-layers.png)" in lines
    picture = (tmp_path / "real-whisper" / "whisper-nano-layers.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
