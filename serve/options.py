"""What a server is started with."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from speechquant.core.errors import OptionError
from speechquant.core.files import read_text
from speechquant.engines.decoding_options import DecodingOptions

_BYTES_PER_MEGABYTE = 1_000_000
_LONGEST_WAIT_MS = 60_000


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and how long it may take to ask.

    `requests` are all that are read, wait or run at once; `waiting_seconds` the seconds of audio of
    those that wait or run. `idle_seconds` is how long the next piece of a body may take,
    `body_seconds` the whole of it.
    """

    megabytes: float = 100.0
    audio_seconds: float = 3600.0
    requests: int = 64
    waiting_seconds: float = 7200.0
    idle_seconds: float = 20.0
    body_seconds: float = 300.0

    def __post_init__(self) -> None:
        limits = self.megabytes, self.audio_seconds, self.requests
        if min(limits) <= 0 or not all(map(math.isfinite, limits)):
            raise OptionError("limits of a server are finite and above 0")

    @property
    def bytes(self) -> int:
        """The most bytes of a body."""
        return round(self.megabytes * _BYTES_PER_MEGABYTE)


@dataclass(frozen=True)
class Batching:
    """How requests share the models: batches of at most `most`, collected for `wait_ms`.

    `workers` threads run batches of a model at once, each with `threads` cores and, so that they
    need not wait for each other, with a session of its own.
    """

    most: int = 8
    wait_ms: float = 20.0
    workers: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.most < 1 or self.workers < 1 or not 0 <= self.wait_ms <= _LONGEST_WAIT_MS:
            raise OptionError(
                f"a batch and workers are at least 1, a wait 0 to {_LONGEST_WAIT_MS} ms"
            )

    @property
    def cores(self) -> int | None:
        """What one call may use: the cores shared out, where there are several workers."""
        if self.threads is not None or self.workers == 1:
            return self.threads
        return max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(frozen=True)
class ServeOptions:
    """All of it.

    `token` is what clients have to know, None where nobody has to. `decoding` is how models are
    asked for what clients leave open.
    """

    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    token: str | None = None
    decoding: DecodingOptions = field(default_factory=DecodingOptions)


def read_token(path: Path) -> str:
    """Return the token in a file; raises OptionError."""
    token = read_text(path, OptionError, "write the token as plain text").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise OptionError(f"{path}: no token; write one line of letters and digits into it")
    return token
