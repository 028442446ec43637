"""The test run itself: it ends, and red, whatever happens to its processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist", reason="the run has one process: pip install pytest-xdist")
TESTS = Path(__file__).parent
MAKEFILE = TESTS.parent / "Makefile"


def run_of(tests: str, folder: Path, *options: str) -> tuple[int, str]:
    """Return exit code and output of a run of a module of tests, as `make test` starts one."""
    (folder / "test_it.py").write_text(tests)
    command = MAKEFILE.read_text().partition("-m pytest --numprocesses auto")[2]
    given = re.sub(r"\\\n|--run-seconds \S+", "", command.partition("\n\n")[0]).split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", "2", *given, *options, "."],
        cwd=folder, text=True, capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_crash_is_named_and_ends_the_run(tmp_path: Path) -> None:
    tests = "import ctypes\ndef test_good(): pass\ndef test_bad(): ctypes.string_at(0)\n"
    code, output = run_of(tests, tmp_path)
    assert code == 1
    assert "crashed while running 'test_it.py::test_bad'" in output
    assert "Fatal Python error: Segmentation fault" in output


def test_a_run_that_hangs_ends_at_its_limit(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from run_limit import *\n")
    tests = "import time\ndef test_slow(): time.sleep(50)\n"
    code, output = run_of(tests, tmp_path, "--run-seconds", "2")
    assert code == 1
    assert "Timeout (0:00:02)" in output
