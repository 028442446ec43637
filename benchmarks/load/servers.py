"""A server in a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_BYTES_PER_KIB = 1024
_SAMPLED_SECONDS = 0.25
_DRAIN_SECONDS = 120.0


@dataclass
class ServerProcess:
    """A running `speechquant serve`; `temporary` is where it writes uploads."""

    host: str
    port: int
    models: list[str]
    temporary: Path
    peak_bytes: int = 0
    stderr: str = ""
    exit_code: int | None = None
    left_files: tuple[str, ...] = ()


@contextmanager
def server_process(
    bundles: Sequence[Path], options: Sequence[str]
) -> Iterator[tuple[ServerProcess, subprocess.Popen[str]]]:
    """Yield a server on a free port; afterwards it is told to end, and its record is complete."""
    command = [sys.executable, "-m", "speechquant.pipeline.command", "serve"]
    command += [*map(str, bundles), "--port", "0", "--json", *options]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TMPDIR": folder},
        )
        try:
            facts = _announced(process)
            url = urlsplit(facts["url"])
            server = ServerProcess(
                str(url.hostname), int(url.port or 0), facts["models"], Path(folder)
            )
            # ONNX Runtime leaves a file of its own there.
            before = set(Path(folder).iterdir())
            threading.Thread(target=_sample_memory, args=(process, server), daemon=True).start()
            yield server, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(_DRAIN_SECONDS)
            log.seek(0)
        server.stderr, server.exit_code = log.read(), process.returncode
        server.left_files = tuple(
            sorted(path.name for path in set(Path(folder).iterdir()) - before)
        )


def _announced(process: subprocess.Popen[str]) -> Any:
    """Return what `serve --json` prints when it is ready."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    lines = ""
    for line in process.stdout:
        lines += line
        if line.startswith("}"):
            break
    return json.loads(lines)


def _sample_memory(process: subprocess.Popen[str], server: ServerProcess) -> None:
    status = Path(f"/proc/{process.pid}/status")
    ended = threading.Event()
    while process.poll() is None and not ended.wait(_SAMPLED_SECONDS):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            if line.startswith("VmRSS:"):
                resident = int(line.split()[1]) * _BYTES_PER_KIB
                server.peak_bytes = max(server.peak_bytes, resident)
