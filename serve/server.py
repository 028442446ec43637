"""The running server: where it listens, how it ends."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from speechquant.core.errors import OptionError
from speechquant.serve.app import app_of
from speechquant.serve.gate import Gate
from speechquant.serve.meters import Meters
from speechquant.serve.models import ServedModel, opened_models
from speechquant.serve.options import ServeOptions

# How long requests that are on their way still find the server, to hear that it ends.
_LINGER_SECONDS = 0.5
_BACKLOG = 256


@dataclass(frozen=True)
class Served:
    """What is served and where."""

    url: str
    models: tuple[str, ...]
    provider: str


class DrainingServer(uvicorn.Server):
    """A server that answers what it has accepted before it ends, and 503 to what comes later."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate
        self._ends_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends it at once."""
        if self._gate.is_draining:
            self.should_exit = self.force_exit = True
            return
        self.drain()

    def drain(self) -> None:
        """Take no more requests, and end when those that were accepted are answered."""
        self._gate.is_draining = True
        self._ends_at = time.monotonic() + _LINGER_SECONDS

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end."""
        ends = self._gate.is_draining and self._gate.is_idle and time.monotonic() > self._ends_at
        return await super().on_tick(counter) or ends


OnReady = Callable[[Served, DrainingServer], None]


def listening(host: str, port: int) -> socket.socket:
    """Return a socket on which clients are waited for; raises OptionError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as stack:
            opened = stack.enter_context(socket.socket(family))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((host, port))
            opened.listen(_BACKLOG)
            stack.pop_all()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"--host {host} --port {port}: cannot be listened on ({reason}); choose others"
        ) from error
    return opened


def serve(
    folders: Sequence[Path],
    provider: str | None,
    options: ServeOptions,
    opened: socket.socket,
    on_ready: OnReady,
) -> None:
    """Serve the models in folders until a signal; raises what `opened_models` does."""
    meters = Meters()
    with (
        contextlib.closing(opened),
        opened_models(folders, provider, options, meters) as models,
    ):
        run(models, options, meters, opened, on_ready)


def run(
    models: Mapping[str, ServedModel],
    options: ServeOptions,
    meters: Meters,
    opened: socket.socket,
    on_ready: OnReady,
) -> None:
    """Serve open models on an open socket until a signal."""
    # They write a line for each request that is no HTTP or no form.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    host, port = opened.getsockname()[:2]
    gate = app_of(models, options, meters)
    config = uvicorn.Config(
        gate,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http="h11",
        ws="none",
    )
    server = DrainingServer(config, gate)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    providers = {model.recognizer.provider for model in models.values()}
    on_ready(Served(url, tuple(models), ", ".join(sorted(providers))), server)
    server.run(sockets=[opened])
