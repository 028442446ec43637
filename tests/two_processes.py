"""Two processes that train together as torchrun would start them; this one is the first."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def first_of_two(*arguments: str) -> Iterator[None]:
    """Make this process the first of two; the other is a python with the arguments given.

    One of the two is this one because it has loaded torch already.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **ranks[1]}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as other:  # fmt: skip
        try:
            with pytest.MonkeyPatch.context() as first:
                for name, value in ranks[0].items():
                    first.setenv(name, value)
                yield
            said, _ = other.communicate(timeout=60)
        finally:
            other.kill()
    assert other.returncode == 0, said
