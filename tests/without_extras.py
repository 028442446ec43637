"""Plugin of pytest for the wheel alone, without extras; tests/pythons.py loads it.

A test that fails for want of an extra is skipped. What passes is counted by folder: fewer than are
known to need no extra are a failure, so that nothing that comes to need one goes unnoticed.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

from speechquant.core import errors

EXTRAS = (
    "av", "ctranslate2", "espeakng_loader", "fastapi", "jinja2", "matplotlib", "nncf", "onnx", "onnx_ir",
    "onnxruntime_ep_openvino", "onnxscript", "openvino", "prometheus_client", "pyarrow", "pycuda", "safetensors", "silero_vad", "tensorrt",
    "tensorrt_rtx", "torch", "transformers", "uvicorn",
)  # fmt: skip
# Somewhat fewer than pass, so that a test may go.
LEAST_PASSED = {"core": 150, "calibrators": 270, "engines": 190, "benchmarks": 120, "pipeline": 30}
_FOR_WANT = re.compile(
    rf"pip install 'speechquant\[[\w-]+\]'|No module named '({'|'.join(EXTRAS)})\b"
)
_passed: Counter[str] = Counter()
# A fixture fails once, and its error is raised again for each test that shares it.
_for_want: list[BaseException] = []


def pytest_configure() -> None:
    site_packages = Path(sysconfig.get_path("purelib"))
    if not Path(errors.__file__).is_relative_to(site_packages):
        raise pytest.UsageError(f"{errors.__file__} is tested, not what {site_packages} has")
    if found := [name for name in EXTRAS if find_spec(name)]:
        raise pytest.UsageError(f"there are extras: {', '.join(found)}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.failed and (found := _FOR_WANT.search(report.longreprtext)):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, found[0])
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.excinfo is not None:
        found = _FOR_WANT.search(report.longreprtext + report.capstderr)
        if found or call.excinfo.value in _for_want:
            _for_want.append(call.excinfo.value)
            reason = found[0] if found else "a fixture needs an extra"
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, reason)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed[Path(report.nodeid.partition("::")[0]).parts[1]] += 1


def _too_few() -> list[str]:
    return [
        f"{_passed[folder]} tests of {folder} passed, and {least} need no extra"
        for folder, least in LEAST_PASSED.items()
        if _passed[folder] < least
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _too_few():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _too_few():
        terminalreporter.write_line(f"ERROR {line}", red=True)
