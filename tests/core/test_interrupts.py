from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speechquant.core.interrupts import out_of_reach_of_interrupts

_SCRIPT = """
import os, signal
from multiprocessing import get_context
from speechquant.core.interrupts import out_of_reach_of_interrupts

if __name__ == "__main__":
    process = get_context("spawn").Process(target=print, args=("worked",))
    with out_of_reach_of_interrupts():
        process.start()
    # Long before it has loaded anything.
    os.kill(process.pid, signal.SIGINT)
    process.join()
    print(process.exitcode)
"""


def test_a_process_that_is_just_starting_is_not_interrupted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["worked", "0"], "")


def test_afterwards_this_process_is_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ValueError, match="own"), out_of_reach_of_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise ValueError("own")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
