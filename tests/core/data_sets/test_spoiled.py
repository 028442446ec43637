"""Containers with bytes changed or missing, by a fixed seed: each is read or refused in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_sets import RATE_HZ, SmallSet, small_set, write_tar

from speechquant.core.audio import read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import SpeechquantError

TRIES = 150
# Most of what tells the structure is near the beginning and the end.
NEAR_BYTES = 2000


def parquet(path: Path, small: SmallSet) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_table(small), path, row_group_size=2)


def arrow(path: Path, small: SmallSet) -> None:
    import pyarrow as pa

    table = _table(small)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)


def _table(small: SmallSet) -> object:
    import pyarrow as pa

    audio = [{"bytes": path.read_bytes(), "path": path.name} for path in small.files]
    return pa.table({"audio": audio, "text": list(small.texts)})


def tar(path: Path, small: SmallSet) -> None:
    members = []
    for file, text in zip(small.files, small.texts, strict=True):
        members.append((file.name, file.read_bytes()))
        members.append((f"{file.stem}.json", json.dumps({"text": text}).encode()))
    write_tar(path, *members)


def cuts(path: Path, small: SmallSet) -> None:
    rows = [
        {
            "type": "MonoCut", "id": file.stem, "start": 0.1, "duration": 0.2, "channel": 0,
            "supervisions": [{"text": text}],
            "recording": {"sources": [{"type": "file", "channels": [0], "source": str(file)}]},
        }
        for file, text in zip(small.files, small.texts, strict=True)
    ]  # fmt: skip
    content = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", parquet),
        ("a.arrow", arrow),
        ("a.tar", tar),
        ("cuts.jsonl.gz", cuts),
        ("cuts.jsonl", cuts),
    ],
)
def test_spoiled_containers(
    tmp_path: Path, name: str, write: Callable[[Path, SmallSet], None]
) -> None:
    path, rng = tmp_path / name, np.random.default_rng(0)
    write(path, small_set(tmp_path / "files", (".wav",)))
    content, refused = path.read_bytes(), 0
    for _ in range(TRIES):
        path.write_bytes(spoiled(content, rng))
        try:
            for clip in read_data_set(path):
                read_audio(clip.audio, RATE_HZ, 100.0)
        except SpeechquantError as error:
            refused += 1
            assert str(error).count("\n") == 0
    assert refused > TRIES // 4


def spoiled(content: bytes, rng: np.random.Generator) -> bytes:
    changed, kind = bytearray(content), rng.integers(4)
    if kind == 0:
        return content[: rng.integers(len(content))]
    span = len(content) if kind == 1 else min(NEAR_BYTES, len(content))
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(span))
        changed[place if kind < 3 else len(content) - 1 - place] = rng.integers(256)
    return bytes(changed)
