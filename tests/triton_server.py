"""The Triton of the wheel nvidia-pytriton, which has its Python backend and no other."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = "SPEECHQUANT_TRITON"
# What the Triton of this wheel has, and what its models import; its Python backend loses the texts
# of NumPy 2, so none of it may lie beside the packages of the tests.
INSTALL = (
    "python -m venv DIR && DIR/bin/pip install nvidia-pytriton==0.7.0 onnxruntime tokenizers, "
    f"and name the folder DIR in {FOLDER}"
)
_START_SECONDS = 60.0
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def triton_environment() -> Path | None:
    """Return where Triton and what its models need lie, None where that is not for this Python."""
    named = os.environ.get(FOLDER)
    folder = None if named is None else Path(named)
    return folder if folder and _stub(_triton(folder)).is_file() else None


def _packages(environment: Path) -> Path:
    return environment / "lib" / f"python{_VERSION}" / "site-packages"


def _triton(environment: Path) -> Path:
    return _packages(environment) / "pytriton" / "tritonserver"


def _stub(triton: Path) -> Path:
    return triton / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"


def python_beside(environment: Path, code: str, *arguments: object) -> str:
    """Return what a program prints that has the packages of Triton and no others."""
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code, *map(str, arguments)],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(environment: Path, repositories: Sequence[Path], work: Path) -> Iterator[str]:
    """Yield HOST:PORT of a Triton that serves repositories; its words are in WORK/log."""
    port = _free_port()
    log = work / "log"
    with log.open("w") as words:
        process = subprocess.Popen(
            [
                *[
                    _installed(_triton(environment), work) / "bin" / "tritonserver",
                    f"--http-port={port}",
                ],
                *[f"--model-repository={repository}" for repository in repositories],
                *[f"--backend-directory={work}/backends"],
                *[
                    "--http-address=127.0.0.1",
                    "--allow-grpc=false",
                    "--allow-metrics=false",
                    "--exit-timeout-secs=2",
                ],
                f"--backend-config=python,shm-region-prefix-name=sq{os.getpid()}-{port}",
            ],
            env=_variables(environment),
            stdout=words,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}/v2/health/ready", log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _installed(triton: Path, work: Path) -> Path:
    """Return the Triton, with the backend's stub for this Python in a folder of our own."""
    backend = work / "backends" / "python"
    if not backend.exists():
        shutil.copytree(triton / "backends" / "python", backend)
        shutil.copy(_stub(triton), backend)
        (backend / "triton_python_backend_stub").chmod(0o755)
    (triton / "bin" / "tritonserver").chmod(0o755)
    return triton


def _variables(environment: Path) -> dict[str, str]:
    # The stub takes the first Python on the path, with its packages, and knows no PYTHONPATH.
    path = environment / "bin", os.environ["PATH"]
    libraries = _packages(environment) / "nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "PATH": os.pathsep.join(map(str, path)),
        "LD_LIBRARY_PATH": os.pathsep.join(str(folder) for folder in libraries if folder),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends_at:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"not ready: {log.read_text()}")
