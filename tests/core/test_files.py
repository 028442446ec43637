from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from speechquant.core.errors import OutputExistsError, StorageError
from speechquant.core.files import new_folder as new_marked_folder
from speechquant.core.files import only_process, refuse_unwritable

MARK = "mark"


def new_folder(target: Path, *, force: bool = False) -> AbstractContextManager[Path]:
    return new_marked_folder(target, MARK, force=force)


def own_output(folder: Path) -> Path:
    folder.mkdir()
    (folder / MARK).touch()
    return folder


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
    own_output(tmp_path / "out")
    with pytest.raises(ValueError, match="late"), new_folder(tmp_path / "out", force=True):
        raise ValueError("late")
    assert names(tmp_path / "out") == [MARK]
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("name", ["out", "gold-w8a8"])  # the latter holds the mark of old ones
def test_leftovers_of_a_killed_run_are_removed_those_of_a_running_one_kept(
    tmp_path: Path, name: str
) -> None:
    killed = tmp_path / f".{name}.partial-4194303"  # above the largest pid that Linux gives out
    running = tmp_path / f".{name}.partial-{os.getppid()}"
    killed.mkdir()
    running.mkdir()
    (killed / "half").touch()
    with new_folder(tmp_path / name):
        pass
    assert names(tmp_path) == [running.name, name]
    assert names(tmp_path / name) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot be written")],
)
def test_errors_of_the_system_get_a_name(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(StorageError, match=message), new_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == []


def test_force_spares_what_it_did_not_make(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for target in (home, tmp_path / "file"):
        with (
            pytest.raises(OutputExistsError, match="not made by this command"),
            new_folder(target, force=True),
        ):
            pytest.fail("the block must not run")
    assert names(home) == ["thesis.tex"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failing_between_the_renames_gives_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    target = own_output(tmp_path / "out")
    rename, calls = Path.rename, []

    def failing(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error), new_folder(target, force=True):
        pass
    assert names(tmp_path) == ["out"]
    assert names(target) == [MARK]


def test_folder_of_a_run_killed_between_the_renames_comes_back(tmp_path: Path) -> None:
    own_output(tmp_path / ".out.partial-old-4194303")
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["out"]


def test_target_that_appears_during_the_work_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "out"):
        own_output(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == [MARK]


def test_leftover_with_the_number_of_this_process_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".o[1].partial-{os.getpid()}").mkdir()
    refuse_unwritable(tmp_path / "o[1]")
    with new_folder(tmp_path / "o[1]"):
        pass
    assert names(tmp_path) == ["o[1]"]


def test_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    real = own_output(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "broken").symlink_to(tmp_path / "later")
    with new_folder(tmp_path / "link", force=True) as folder:
        (folder / "new").touch()
    assert names(real) == ["new"]
    with new_folder(tmp_path / "broken"):
        pass
    assert names(tmp_path) == ["broken", "later", "link", "real"]


def test_places_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out", tmp_path / ("x" * 250)):
        with pytest.raises(StorageError, match="cannot be written"):
            refuse_unwritable(target)
    refuse_unwritable(tmp_path / "deep" / "er" / "out")
    assert names(tmp_path) == ["file"]


def test_a_folder_is_one_process_alone(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with only_process(folder, wait=False):
        with (
            pytest.raises(StorageError, match="another run is at work in it"),
            only_process(folder, wait=False),
        ):
            raise AssertionError
        waited: list[bool] = []

        def wait() -> None:
            with only_process(folder, wait=True):
                waited.append(True)

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert waited == []
    waiting.join(10)
    assert waited == [True]
    assert names(tmp_path) == []


_ALONE = """
import sys, time
from pathlib import Path
from speechquant.core.files import only_process

folder, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with only_process(folder, wait=True):
        count = int(counter.read_text())
        print("in", flush=True)
        time.sleep(float(sys.argv[4]))
        counter.write_text(str(count + 1))
"""


def alone(folder: Path, counter: Path, times: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(argument) for argument in (folder, counter, times, seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", _ALONE, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_none_is_in_a_folder_at_once_though_it_goes_whenever_one_leaves(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    running = [alone(tmp_path / "work", counter, 30, 0.001) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].split() for process in running] == [["in"] * 30] * 3
    assert counter.read_text() == "90"
    assert names(tmp_path) == ["counter"]


def test_a_killed_process_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    folder, counter = tmp_path / "work", tmp_path / "counter"
    counter.write_text("0")
    killed = alone(folder, counter, 1, 60.0)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "in\n"
    with pytest.raises(StorageError, match="another run"), only_process(folder, wait=False):
        pytest.fail("the block must not run")
    killed.kill()
    killed.communicate()
    with only_process(folder, wait=False):
        pass
    assert names(tmp_path) == ["counter"]


def test_a_file_is_no_folder_to_work_in(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        only_process(tmp_path / "work", wait=True).__enter__()


def test_files_in_a_folder_outlive_the_lock(tmp_path: Path) -> None:
    with only_process(tmp_path / "work", wait=False):
        (tmp_path / "work" / "mine").touch()
    assert names(tmp_path / "work") == ["mine"]


def test_a_name_that_the_file_system_does_not_allow(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="out: cannot be written"), new_folder(tmp_path / "out"):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_a_place_without_any_folder_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows a drive that is not there."""
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    monkeypatch.setattr(Path, "mkdir", failing_with(errno.ENOTDIR))
    with pytest.raises(StorageError, match="cannot be written"):
        refuse_unwritable(tmp_path / "out")


def failing_with(number: int) -> Callable[..., None]:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fails
