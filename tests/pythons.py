"""Tests the wheel on other Pythons: `python tests/pythons.py 3.10 3.11` (`make test-pythons`).

The wheel is installed without extras, into an environment of its own for each Python, and so are
the newest packages that it takes there: the pins of constraints.txt are of the Python that they
were made with, and some are of no other. What is tested is what tests/without_extras.py lets run.
Bundles, which take torch to make, are made by the Python that runs this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shared_artifacts import MADE_BEFORE, TINY, SharedArtifacts

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "pythons"
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
_VERSIONS = """
import platform
from importlib.metadata import version

names = ("numpy", "onnxruntime", "filelock")
print(f"Python {platform.python_version()},", ", ".join(f"{name} {version(name)}" for name in names))
"""


def find_python(version: str) -> Path | None:
    """Return the Python 3.X that is on PATH, else the newest that pyenv has."""
    found = shutil.which(f"python{version}")
    # pyenv puts names on PATH that work for chosen versions alone.
    if (
        found
        and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    ):
        return Path(found)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    pythons = root.glob(f"versions/{version}.*/bin/python")
    return max(pythons, key=lambda path: int(path.parent.parent.name.split(".")[2]), default=None)


def make_artifacts(folder: Path) -> None:
    """Write the bundles that the tests would export."""
    artifacts = SharedArtifacts(folder)
    artifacts.bundle(TINY)
    artifacts.whisper_with_parity()


def make_wheel(folder: Path) -> Path:
    """Return the wheel of this working tree."""
    build = [sys.executable, *_PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT]
    # Without setuptools' warning of data in folders that are no packages.
    subprocess.run(build, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return next(folder.glob("*.whl"))


def is_passed(python: Path, wheel: Path, folder: Path) -> bool:
    """Install the wheel into a fresh environment of `python` and test it there."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    ours = folder / "bin" / "python"
    subprocess.run([ours, *_PIP, "install", wheel, "pytest", "pytest-timeout"], check=True)
    subprocess.run([ours, "-c", _VERSIONS], check=True)
    subprocess.run(
        [folder / "bin" / "speechquant", "--help"], check=True, stdout=subprocess.DEVNULL
    )
    tests = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    done = subprocess.run(
        [
            folder / "bin" / "pytest", "--quiet", "-p", "without_extras", "-p", "no:cacheprovider",
            "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, ROOT / "tests",
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": tests,
            MADE_BEFORE: str(WORK / "artifacts"),
        },
        check=False,
    )  # fmt: skip
    return done.returncode == 0


def main(versions: list[str]) -> int:
    """Test on every one of `versions` that the machine has; return the exit code."""
    shutil.rmtree(WORK, ignore_errors=True)
    make_artifacts(WORK / "artifacts")
    wheel = make_wheel(WORK / "wheel")
    results = {}
    for version in versions:
        python, started = find_python(version), time.monotonic()
        if python is None:
            results[version] = "skipped: there is none here"
            continue
        passed = is_passed(python, wheel, WORK / version)
        results[version] = f"{'passed' if passed else 'FAILED'}, {time.monotonic() - started:.0f} s"
    for version, result in results.items():
        print(f"Python {version}: {result}")
    has_passed = any(result.startswith("passed") for result in results.values())
    return 1 if not has_passed or any("FAILED" in result for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
