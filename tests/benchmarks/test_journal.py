from __future__ import annotations

from pathlib import Path

from speechquant.benchmarks.journal import Journal


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
