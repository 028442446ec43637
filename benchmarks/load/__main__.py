"""Serve a bundle, load it, end it in the middle, and attack it; print a page about it."""

from __future__ import annotations

import argparse
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.load.clients import Answered, Load, SpokenClip, percentile_ms, wav_of
from speechquant.benchmarks.load.hostile import Target, answered_statuses, is_failure
from speechquant.benchmarks.load.servers import ServerProcess, server_process
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import OptionError
from speechquant.engines.families import open_recognizer
from speechquant.zoo.corpus import corpus_manifest

_SHORTEST, _LONGEST = 2.0, 15.0
_OK = 200
_TOKEN = "attacked"  # noqa: S105
_PATIENCE_SECONDS = 0.5
_DRAIN_SECONDS = 120.0
_BATCH_LINES = ("speechquant_batch_clips_sum", "speechquant_batch_clips_count")


def main() -> None:
    """Measure and print."""
    asked = _asked()
    clips = _clips(asked.bundle, asked.data, asked.clips, asked.provider)
    seconds = sum(clip.seconds for clip in clips) / len(clips)
    print(f"# Load on {asked.bundle.name}\n")  # noqa: T201
    print(f"{describe_machine()}; provider {asked.provider}. ", end="")  # noqa: T201
    print(f"{len(clips)} clips of {_SHORTEST:g} to {_LONGEST:g} s, {seconds:.1f} s ", end="")  # noqa: T201
    print(f"on average; {asked.clients} clients, {asked.minutes:g} minutes a row.\n")  # noqa: T201
    rows = [_loaded(asked, clips, batch) for batch in asked.batches]
    _print_table(
        ["--max-batch", "requests", "wrong texts", "lost", "p50 ms", "p95 ms", "real-time factor",
         "clips a batch", "peak MB"],
        rows,
    )  # fmt: skip
    print(_ended_in_the_middle(asked, clips), end="\n\n")  # noqa: T201
    print(_attacked(asked, clips))  # noqa: T201


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, help="data set; zoo:test by default")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--batches", type=lambda given: given.split(","), default=["1", "8"])
    parser.add_argument("--hostile", type=int, default=2000)
    parser.add_argument("--provider", default="cpu")
    return parser.parse_args()


def _clips(bundle: Path, data: Path | None, count: int, provider: str) -> list[SpokenClip]:
    """Return clips with the texts that the model writes of each alone."""
    labelled = read_data_set(data or corpus_manifest("test"), require_text=False)
    found = []
    with open_recognizer(bundle, provider=provider) as recognizer:
        rate_hz = recognizer.spec.sample_rate_hz
        for one in labelled:
            wave = recognizer.read(one.audio)
            if _SHORTEST <= len(wave) / rate_hz <= _LONGEST:
                (text,) = recognizer.transcribe([wave])
                found.append(SpokenClip(wav_of(wave, rate_hz), len(wave) / rate_hz, text))
            if len(found) == count:
                return found
    if not found:
        raise OptionError(f"{data}: no clip of {_SHORTEST:g} to {_LONGEST:g} s")
    return found


def _loaded(asked: argparse.Namespace, clips: Sequence[SpokenClip], batch: str) -> list[str]:
    """Return the row of one size of batches."""
    options = ["--max-batch", batch, "--provider", asked.provider]
    with server_process([asked.bundle], options) as (server, _):
        load = Load(server.host, server.port, server.models[0], clips)
        wall = load.run(asked.clients, 60 * asked.minutes)
        clips_a_batch = _clips_a_batch(server)
    done = [answer for answer in load.answers if answer.status == _OK]
    audio = sum(answer.clip.seconds for answer in done)
    return [
        batch,
        str(len(load.answers)),
        str(sum(answer.is_wrong for answer in done)),
        str(len(load.answers) - len(done)),
        f"{percentile_ms(done, 50):.0f}",
        f"{percentile_ms(done, 95):.0f}",
        f"{wall / audio:.3f}",
        f"{clips_a_batch:.1f}",
        f"{server.peak_bytes / 1e6:.0f}",
    ]


def _clips_a_batch(server: ServerProcess) -> float:
    from urllib.request import urlopen

    with urlopen(f"http://{server.host}:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    total, count = (
        float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])
        for name in _BATCH_LINES
    )
    return total / max(count, 1.0)


def _ended_in_the_middle(asked: argparse.Namespace, clips: Sequence[SpokenClip]) -> str:
    """Send SIGTERM while all clients ask; return what became of their requests."""
    with server_process([asked.bundle], ["--provider", asked.provider]) as (server, process):
        load = Load(server.host, server.port, server.models[0], clips)
        ended: list[float] = []
        half = 60 * asked.minutes / 4
        threading.Timer(half, lambda: ended.append(_terminate(process))).start()
        load.run(asked.clients, 4 * half)
        process.wait(_DRAIN_SECONDS)  # a second signal would end it by force
    under_way = [one for one in load.answers if one.began <= ended[0] < one.ended]
    later = [one for one in load.answers if one.began > ended[0]]
    return (
        f"`kill -TERM` after {len(load.answers) - len(under_way) - len(later)} answers, with "
        f"{len(under_way)} requests under way: these were answered {_counted(under_way)}, the "
        f"{len(later)} that came later {_counted(later)}; wrong texts "
        f"{sum(one.is_wrong for one in load.answers)}; exit code {server.exit_code}, "
        f"files left {len(server.left_files)}."
    )


def _terminate(process: subprocess.Popen[str]) -> float:
    process.send_signal(signal.SIGTERM)
    return time.monotonic()


def _counted(answers: Sequence[Answered]) -> str:
    counts = Counter("not at all" if one.status is None else str(one.status) for one in answers)
    return ", ".join(f"{status} x {count}" for status, count in counts.items()) or "nothing"


def _attacked(asked: argparse.Namespace, clips: Sequence[SpokenClip]) -> str:
    """Send hostile requests; return a table of how they were answered."""
    clip = min(clips, key=lambda one: one.seconds)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(_TOKEN)
        file.flush()
        options = ["--provider", asked.provider, "--token", file.name]
        with server_process([asked.bundle], options) as (server, _):
            model = server.models[0]
            target = Target(
                server.host, server.port, model, clip.content, _TOKEN, _PATIENCE_SECONDS
            )
            statuses = answered_statuses(target, seed=0, count=asked.hostile)
            after = Load(server.host, server.port, model, [clip], token=_TOKEN)
            after.run(1, 1.0)
    failures = sum(
        count for counts in statuses.values() for status, count in counts.items()
        if is_failure(status)
    )  # fmt: skip
    served = all(one.status == _OK and not one.is_wrong for one in after.answers)
    summary = (
        f"{asked.hostile} hostile requests of seed 0: {failures} of 500 and above, "
        f"{server.stderr.count('Traceback')} tracebacks, {len(server.left_files)} files left, "
        f"peak {server.peak_bytes / 1e6:.0f} MB; the next client was "
        f"{'served' if served else 'not served'}.\n\n"
    )
    lines = ["| request | answers |", "|---|---|"]
    for name, counts in sorted(statuses.items()):
        told = ", ".join(f"{status} x {count}" for status, count in sorted(counts.items()))
        lines.append(f"| {name} | {told} |")
    return summary + "\n".join(lines)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (headings, ["---"] * len(headings), *rows):
        print(f"| {' | '.join(row)} |")  # noqa: T201
    print()  # noqa: T201


if __name__ == "__main__":
    main()
