"""A server in a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_BYTES_PER_KIB = 1024
_DRAIN_SECONDS = 120.0


@dataclass
class ServerProcess:
    """A running `speechquant serve`; what it leaves behind is known once it has ended."""

    host: str
    port: int
    models: list[str]
    pid: int
    stderr: str = ""
    exit_code: int | None = None
    left_files: tuple[str, ...] = ()

    @property
    def resident_bytes(self) -> int:
        """The memory that it has now."""
        return self._status("VmRSS:")

    @property
    def peak_bytes(self) -> int:
        """The most memory that it had so far."""
        return self._status("VmHWM:")

    @property
    def cpu_seconds(self) -> float:
        """The time of all its threads on a processor so far."""
        # What is before the last bracket is the name of the program, whatever is in it.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = fields[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(name)]
        return int(line.split()[1]) * _BYTES_PER_KIB


@contextmanager
def server_process(
    bundles: Sequence[Path], options: Sequence[str]
) -> Iterator[tuple[ServerProcess, subprocess.Popen[str]]]:
    """Yield a server on a free port; afterwards it is told to end, and its record is complete."""
    command = [sys.executable, "-m", "speechquant.pipeline.command", "serve"]
    command += [*map(str, bundles), "--port", "0", "--json", *options]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        opened = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TMPDIR": folder},
        )
        with opened as process:
            try:
                server = _announced(process)
                # ONNX Runtime leaves a file of its own there.
                before = set(Path(folder).iterdir())
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


def _announced(process: subprocess.Popen[str]) -> ServerProcess:
    """Return what `serve --json` prints when it is ready."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    lines = ""
    for line in process.stdout:
        lines += line
        if line.startswith("}"):
            break
    facts = json.loads(lines)
    url = urlsplit(facts["url"])
    return ServerProcess(str(url.hostname), int(url.port or 0), facts["models"], process.pid)
