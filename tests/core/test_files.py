from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from speechquant.core.errors import OutputExistsError, StorageError
from speechquant.core.files import new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_existing_folder_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_force_replaces_only_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(ValueError, match="late"), new_folder(tmp_path / "out", force=True):
        raise ValueError("late")
    assert names(tmp_path / "out") == ["old"]
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_leftovers_of_a_killed_run_are_removed_those_of_a_running_one_kept(tmp_path: Path) -> None:
    killed = tmp_path / ".out.partial-4194303"  # above the largest pid that Linux gives out
    running = tmp_path / f".out.partial-{os.getppid()}"
    killed.mkdir()
    running.mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [running.name, "out"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot be written")],
)
def test_errors_of_the_system_get_a_name(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(StorageError, match=message), new_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == []
