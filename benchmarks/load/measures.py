"""What a server does under load, when it is told to end, and with hostile requests."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from speechquant.benchmarks.load.clients import Answered, Load, SpokenClip
from speechquant.benchmarks.load.hostile import Target, answered_statuses, is_failure
from speechquant.benchmarks.load.servers import ServerProcess, server_process

OK = 200
_TOKEN = "attacked"  # noqa: S105
_PATIENCE_SECONDS = 0.5
_DRAIN_SECONDS = 120.0
_BATCH_LINES = ("speechquant_batch_clips_sum", "speechquant_batch_clips_count")
# A client's next request may come before its last one has left: none is to be refused for that.
_PLACES_A_CLIENT = 2
_TRACEBACK = "Traceback"


@dataclass(frozen=True)
class LoadPlan:
    """What is served, and how many clients ask for how long."""

    bundle: Path
    clips: Sequence[SpokenClip]
    clients: int
    seconds: float
    provider: str

    @property
    def options(self) -> list[str]:
        """Options of `speechquant serve`."""
        places = str(_PLACES_A_CLIENT * self.clients)
        return ["--provider", self.provider, "--max-requests", places]


@dataclass(frozen=True)
class Setting:
    """How the server runs batches."""

    most: int
    workers: int

    @property
    def options(self) -> list[str]:
        """Options of `speechquant serve`."""
        return ["--max-batch", str(self.most), "--workers", str(self.workers)]


@dataclass(frozen=True)
class Memory:
    """The server's memory in bytes: without a request so far, half way, at the end, at most."""

    start: int
    middle: int
    end: int
    peak: int


@dataclass(frozen=True)
class Loaded:
    """How a server did under load; `seconds` and `cpu_seconds` are all of it."""

    setting: Setting
    answers: Sequence[Answered]
    seconds: float
    cpu_seconds: float
    clips_a_batch: float
    memory: Memory
    tracebacks: int

    @property
    def done(self) -> list[Answered]:
        """The requests that were answered with a text."""
        return [answer for answer in self.answers if answer.status == OK]

    @property
    def differing(self) -> list[Answered]:
        """Those whose text is another one than that of the clip alone."""
        return [answer for answer in self.answers if answer.differs]

    @property
    def audio_seconds(self) -> float:
        """The audio that was transcribed."""
        return sum(answer.clip.seconds for answer in self.done)


def loaded(plan: LoadPlan, setting: Setting) -> Loaded:
    """Return how a server with this setting does."""
    middle: list[int] = []
    with server_process([plan.bundle], [*plan.options, *setting.options]) as (server, _):
        start = server.resident_bytes
        load = Load(server.host, server.port, server.models[0], plan.clips)
        half = threading.Timer(plan.seconds / 2, lambda: middle.append(server.resident_bytes))
        half.start()
        cpu_seconds = server.cpu_seconds
        seconds = load.run(plan.clients, plan.seconds)
        cpu_seconds = server.cpu_seconds - cpu_seconds
        half.join()
        memory = Memory(start, middle[0], server.resident_bytes, server.peak_bytes)
        clips_a_batch = _clips_a_batch(server)
    tracebacks = server.stderr.count(_TRACEBACK)
    return Loaded(setting, load.answers, seconds, cpu_seconds, clips_a_batch, memory, tracebacks)


def _clips_a_batch(server: ServerProcess) -> float:
    with urlopen(f"http://{server.host}:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    total, count = (
        float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])
        for name in _BATCH_LINES
    )
    return total / max(count, 1.0)


@dataclass(frozen=True)
class Ended:
    """What became of requests when a server was told to end while all clients asked.

    `under_way` are those that had begun and had no answer yet, `later` those that began afterwards.
    """

    before: Sequence[Answered]
    under_way: Sequence[Answered]
    later: Sequence[Answered]
    exit_code: int | None
    left_files: Sequence[str]


def ended_in_the_middle(plan: LoadPlan) -> Ended:
    """Send SIGTERM while all clients ask; return what became of their requests."""
    with server_process([plan.bundle], plan.options) as (server, process):
        load = Load(server.host, server.port, server.models[0], plan.clips)
        ended: list[float] = []
        quarter = plan.seconds / 4
        threading.Timer(quarter, lambda: ended.append(_terminate(process))).start()
        load.run(plan.clients, 4 * quarter)
        process.wait(_DRAIN_SECONDS)  # a second signal would end it by force
    (at,) = ended
    return Ended(
        [one for one in load.answers if one.ended < at],
        [one for one in load.answers if one.began <= at <= one.ended],
        [one for one in load.answers if one.began > at],
        server.exit_code,
        server.left_files,
    )


def _terminate(process: subprocess.Popen[str]) -> float:
    process.send_signal(signal.SIGTERM)
    return time.monotonic()


@dataclass(frozen=True)
class Attacked:
    """How hostile requests were answered, by their kinds, and what the server was like afterwards.

    `serves` is whether the next client was given its text.
    """

    statuses: Mapping[str, Counter[str]]
    serves: bool
    tracebacks: int
    peak_bytes: int
    left_files: Sequence[str] = field(default_factory=tuple)

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(counts.total() for counts in self.statuses.values())

    @property
    def failures(self) -> int:
        """How many were answered with 500 or above."""
        pairs = [pair for counts in self.statuses.values() for pair in counts.items()]
        return sum(count for status, count in pairs if is_failure(status))


def attacked(plan: LoadPlan, requests: int) -> Attacked:
    """Send hostile requests; return how they were answered."""
    clip = min(plan.clips, key=lambda one: one.seconds)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(_TOKEN)
        file.flush()
        options = ["--provider", plan.provider, "--token", file.name]
        with server_process([plan.bundle], options) as (server, _):
            model = server.models[0]
            target = Target(
                server.host, server.port, model, clip.content, _TOKEN, _PATIENCE_SECONDS
            )
            statuses = answered_statuses(target, seed=0, count=requests)
            after = Load(server.host, server.port, model, [clip], token=_TOKEN)
            after.run(1, 1.0)
            peak = server.peak_bytes
    serves = all(one.status == OK and not one.differs for one in after.answers)
    tracebacks = server.stderr.count(_TRACEBACK)
    return Attacked(statuses, serves, tracebacks, peak, server.left_files)
