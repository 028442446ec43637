from __future__ import annotations

from pathlib import Path

import pytest

from speechquant.benchmarks.bench.journal import Journal
from speechquant.core.errors import StorageError


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "work" / "done.jsonl"
    with Journal(path, "key") as journal:
        assert journal.get("a") is None
        journal.add("a", {"x": [1, 2]})
        journal.add("b", 2)
    with Journal(path, "key") as journal:
        assert journal.get("a") == {"x": [1, 2]}
        journal.add("c", 3)
    with Journal(path, "key") as journal:
        assert [journal.get(name) for name in "abc"] == [{"x": [1, 2]}, 2, 3]


def test_another_key_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    with Journal(path, "key") as journal:
        journal.add("a", 1)
    with Journal(path, "other") as journal:
        assert journal.get("a") is None
    with Journal(path, "key") as journal:
        assert journal.get("a") is None


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    with Journal(path, "key") as journal:
        journal.add("a", 1)
        journal.add("b", 2)
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, "key") as journal:
            assert journal.get("b") is None
            journal.add("c", 3)
        with Journal(path, "key") as journal:
            assert journal.get("c") == 3


@pytest.mark.parametrize("damaged", [b'{"name": "b", "va', b"\xff\xfe\x00"])
@pytest.mark.parametrize("key", ["key", "other"])
def test_a_damaged_line_costs_what_follows_it(damaged: bytes, key: str, tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    with Journal(path, "key") as journal:
        for name in "abc":
            journal.add(name, 1)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damaged, *lines[3:]]))
    with Journal(path, key) as journal:
        expected = [1, None, None] if key == "key" else [None] * 3
        assert [journal.get(name) for name in "abc"] == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    with pytest.raises(StorageError, match="the disk is full"), Journal(path, "key") as journal:
        journal._file.close()
        journal._file = Path("/dev/full").open("a")  # noqa: SIM115
        journal.add("a", 1)
