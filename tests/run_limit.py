"""A limit on the whole run: a process that dies or hangs must not leave it waiting for ever."""

from __future__ import annotations

import faulthandler
import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-seconds", type=float, help="end the whole run, red, after so long")


def pytest_configure(config: pytest.Config) -> None:
    limit = config.getoption("--run-seconds")
    if limit and not hasattr(config, "workerinput"):  # of the processes the one that waits for all
        # Shows where every thread is, and exits with 1.
        faulthandler.dump_traceback_later(limit, exit=True, file=os.dup(2))
