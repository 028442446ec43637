from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from speechquant.pipeline.console import print_table, time_left
from speechquant.pipeline.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_kept_does_not_make_the_rest_seem_short() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 30.0  # a model is loaded
    for step in range(1, 81):
        clock.now += 0.001
        pace.step(step, 100)
    assert pace.seconds_left is None
    for step in range(81, 91):
        clock.now += 6.0
        pace.step(step, 100)
    assert pace.seconds_left == pytest.approx(10 * 6.0)
    clock.now += 4.0
    assert pace.seconds_left == pytest.approx(56.0)
    clock.now += 400.0
    assert pace.seconds_left == 0.0


def test_steps_that_are_all_quick_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    for step in range(1, 501):
        clock.now += 0.01
        pace.step(step, 1000)
    assert pace.seconds_left == pytest.approx(5.0)


def test_the_time_left_is_labelled() -> None:
    assert time_left(None) == ""
    assert time_left(3725.4) == "1:02:05 left"


def test_a_table_in_a_pipe_has_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    name = "encoder.layers.0 [bold]" * 12
    print_table(["layer", "errors"], [[name, "3"], ["b", "12"]])
    heading, rule, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["layer", "errors"]
    assert set(rule) <= {"\N{BOX DRAWINGS LIGHT HORIZONTAL}", "-"}
    assert first.startswith(name)
    assert first.endswith("      3")
    assert second.endswith("     12")
    print_table(["layer", "errors"], [])
    assert capsys.readouterr().out.startswith("layer")


_WORK = """
import logging, time
from speechquant.pipeline.console import progress, show_logs
show_logs(logging.INFO)
with progress("searching") as on_step:
    for done in range(1, 6):
        time.sleep(0.15)
        on_step(done, 10)
        logging.getLogger("speechquant.x").info("layer %d [of] 10", done)
"""


def test_logs_stand_on_lines_of_their_own_above_the_bar() -> None:
    import pty

    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", _WORK], stderr=terminal, env=environment, check=True)
    os.close(terminal)
    written = b""
    while True:
        try:
            part = os.read(reader, 100_000)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(reader)
    shown = written.decode()
    assert " left" in shown
    for done in range(1, 6):
        # Each is written after the bar's line has been erased, and ends its own line.
        assert f"\x1b[2Klayer {done} [of] 10" in shown.replace("\r", "")


def test_logs_in_a_file_are_plain_and_unbroken(capsys: pytest.CaptureFixture[str]) -> None:
    from speechquant.pipeline.console import show_logs

    logger = logging.getLogger("speechquant")
    handlers, level = logger.handlers, logger.level
    try:
        show_logs(logging.INFO)
        logger.info("word " * 60)
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
    assert capsys.readouterr().err == "word " * 60 + "\n"
