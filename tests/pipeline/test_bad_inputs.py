from __future__ import annotations

import re
from pathlib import Path

import pytest
from bad_inputs import (
    CASES,
    FULL_DISK_LINE,
    INTERRUPTED_LINE,
    Case,
    Workspace,
    error_lines,
    interrupted_export,
    on_full_disk,
)
from shared_artifacts import SharedArtifacts

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.pipeline.command import run


@pytest.fixture
def workspace(
    tmp_path: Path, tiny_bundle: Bundle, tiny_checkpoint: Path, whisper_bundle: Bundle
) -> Workspace:
    return Workspace(tmp_path, tiny_bundle.folder, tiny_checkpoint, whisper_bundle.folder)


def hidden_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line(
    case: Case, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = case.command_line(workspace)
    capfd.readouterr()
    code = run(arguments)
    captured = capfd.readouterr()
    assert code == 1
    (line,) = error_lines(captured.err)
    assert line.startswith("error: ")
    assert "unexpected" not in line
    assert re.search(case.expected, line), line
    if case.must_not_exist:
        assert not workspace.path(case.must_not_exist).exists()
    assert hidden_files(workspace.root) == []


def test_full_disk(workspace: Workspace, shared: SharedArtifacts) -> None:
    done = on_full_disk(workspace, shared.command_without_tracing)
    if done is None:
        pytest.skip("this machine lets nobody mount a small file system")
    assert done.returncode == 1
    assert re.search(FULL_DISK_LINE, error_lines(done.stderr)[-1])
    assert done.stdout == ""  # nothing is left on the disk


# Each starts a process that loads torch. Inside torch and where files are written is the hardest.
@pytest.mark.parametrize(
    "when",
    [
        0.05,
        0.5,
        pytest.param("torch runs", marks=pytest.mark.slow),
        "tracing",
        "writing",
        pytest.param("ONNX Runtime runs", marks=pytest.mark.slow),
    ],
)
def test_interrupt_at_any_moment(
    workspace: Workspace, when: str | float, shared: SharedArtifacts
) -> None:
    if when in ("writing", "ONNX Runtime runs"):  # which is after the trace
        done = interrupted_export(workspace, when, shared.command_without_tracing)
    else:
        done = interrupted_export(workspace, when)
    if done.returncode == 0 and when == "ONNX Runtime runs":
        # A busy machine may let the last step end before the signal is sent: then all is there.
        load_bundle(workspace.path("interrupted"))
        return
    if done.returncode == 0 and when == 0.05 and "KeyboardInterrupt" in done.stderr:
        # Python swallows it while it reads the .pth files, before it begins with the command.
        load_bundle(workspace.path("interrupted"))
        return
    if done.returncode == 1 and when == 0.05 and "import the site module" in done.stderr:
        # Python ends while it starts, on a busy machine: none of the command has been read.
        assert not workspace.path("interrupted").exists()
        return
    # -2: so early that Python itself has not yet begun with the command.
    assert done.returncode == 1 or (done.returncode == -2 and when == 0.05)
    if done.returncode == 1:
        assert re.search(INTERRUPTED_LINE, error_lines(done.stderr)[-1])
        assert "Traceback" not in done.stderr
    assert not workspace.path("interrupted").exists()
    assert hidden_files(workspace.root) == []
