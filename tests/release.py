"""What a release must pass: `python tests/release.py 3.10 3.11` (`make release-check`).

The wheel and the source distribution are built and checked by twine. The wheel of the source
distribution is installed without extras into a clean environment of each Python, where the command
starts, the package is imported, and a user's program passes mypy's strict rules. The size of each
environment is printed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pythons import find_python

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "release"
# On Python 3.10 the last ONNX Runtime there is brings sympy, which makes 265 of 252.
MOST_MEGABYTES = 270
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
# Fails under --strict where the package has no py.typed, or a name no type.
_PROGRAM = """
import speechquant as sq


def texts_of(folder: str, files: list[str]) -> list[str]:
    options = sq.QuantizeOptions("out", max_wer_drop=0.3)
    request = sq.CalibrationRequest(sq.load_bundle(folder), sq.DataSet("dev.jsonl"))
    print(sq.quantize(request, options).bundle.size_bytes)
    return sq.transcribe(folder, files)
"""


def main(versions: list[str]) -> int:
    """Check the release on each of `versions` that the machine has; return the exit code."""
    shutil.rmtree(WORK, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", WORK / "dist", ROOT], check=True)
    built = sorted((WORK / "dist").iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], check=True)
    for path in built:
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    wheel = next(path for path in built if path.suffix == ".whl")
    found = {version: find_python(version) for version in versions}
    checked = [_check(version, python, wheel) for version, python in found.items() if python]
    print("not here:", ", ".join(version for version, python in found.items() if not python) or "-")
    return 0 if checked and all(checked) else 1


def _check(version: str, python: Path, wheel: Path) -> bool:
    folder = WORK / version
    subprocess.run([python, "-m", "venv", folder], check=True)
    ours = folder / "bin" / "python"
    empty = _megabytes(folder)
    subprocess.run([ours, *_PIP, "install", wheel], check=True)
    size = _megabytes(folder) - empty
    subprocess.run([folder / "bin" / "speechquant", "--version"], check=True, cwd=folder)
    subprocess.run([ours, "-c", "import speechquant as sq; sq.transcribe"], check=True, cwd=folder)
    program = folder / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    subprocess.run([ours, *_PIP, "install", "mypy"], check=True)
    typed = subprocess.run([ours, "-m", "mypy", "--strict", program], check=False, cwd=folder)
    result = "FAILED" if typed.returncode else "passed"
    print(f"Python {version}: {size:.0f} MB installed, mypy {result}")
    return size <= MOST_MEGABYTES and typed.returncode == 0


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
