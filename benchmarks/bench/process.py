"""A candidate in a process of its own: its memory is its own, and its crash ends nothing else.

The parent starts a Python that runs `main` and asks it for one thing at a time over a pipe. It is
not multiprocessing's spawn, which would run the script of a caller a second time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from speechquant.benchmarks.bench.candidates import Candidate
from speechquant.benchmarks.bench.kernel_profile import joined_profile, profile_from_trace
from speechquant.benchmarks.bench.latency import Sample, run_once
from speechquant.benchmarks.bench.machine import peak_bytes
from speechquant.benchmarks.bench.token_latency import time_parts
from speechquant.benchmarks.report.record import Accuracy, Profile
from speechquant.core.audio import Waveform
from speechquant.core.errors import AudioError, one_line
from speechquant.core.interrupts import interrupts_blocked
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.core.seq2seq import ENCODER, PREFILL, STEP
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.runners import CPU, Session
from speechquant.engines.whisper.recognizer import WhisperRecognizer
from speechquant.recipes.evaluate import evaluate

_PROFILED_RUNS = 3
# Modules are found where the parent finds them: with -c the working folder would come first.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main({descriptor})"
_END_SECONDS = 10.0
# A true-size model is opened, or run on the most audio of one call, in minutes.
_ANSWER_SECONDS = 1800.0
Entered = TypeVar("Entered", bound="CandidateProcess")


class CandidateError(Exception):
    """A candidate that could not be opened or run; says why on one line."""


class UnsuitableError(Exception):
    """Audio that a candidate does not take; says why on one line."""


@dataclass(frozen=True)
class Opened:
    """How long opening took, imports included, what it runs on, and how."""

    nanoseconds: int
    provider: str
    how: str


class Worker:
    """What the process does when it is asked to."""

    def __init__(self, candidate: Candidate, threads: int | None) -> None:
        self._candidate, self._threads = candidate, threads
        self._recognizer: Recognizer | None = None
        self._waves: Sequence[Waveform] = ()

    @property
    def recognizer(self) -> Recognizer:
        """The candidate, which `open` has opened."""
        if self._recognizer is None:
            raise RuntimeError("open the candidate first")
        return self._recognizer

    def open(self) -> Opened:
        """Open the candidate."""
        started = time.perf_counter_ns()
        self._recognizer = self._candidate.open(self._threads).__enter__()
        took = time.perf_counter_ns() - started
        how = self._candidate.how_opened(self._recognizer)
        return Opened(took, self._recognizer.provider, how)

    def take(self, waves: Sequence[Waveform]) -> None:
        """Keep the batch to run; raises AudioError where the candidate does not take it."""
        self._check(self.recognizer, waves)
        self._waves = waves

    def run(self) -> Sample:
        """Run the batch once; raises AudioError where there is nothing to run on in it."""
        return run_once(self.recognizer, self._waves)

    def peak_bytes(self) -> int | None:
        """Return the most memory that this process has held, None where the system does not say."""
        with suppress(OSError):
            return peak_bytes()
        return None

    def evaluate(self, clips: Sequence[LabelledClip], normalizer: str, on_step: OnStep) -> Accuracy:
        """Count the errors on `clips`."""
        found = evaluate(self.recognizer, clips, normalizer=normalizer, on_step=on_step)
        return Accuracy(
            found.words,
            found.characters,
            tuple(clip.hypothesis for clip in found.clips),
            found.audio_seconds,
            found.compute_seconds,
        )

    def profile(self, waves: Sequence[Waveform]) -> Profile | None:
        """Return where the time of one run goes, None where the backend does not tell."""
        with tempfile.TemporaryDirectory() as folder:
            recognizer = self._candidate.open(self._threads, profile_to=Path(folder) / "trace")
            with recognizer:
                if recognizer.provider != CPU:
                    return self._candidate.built_profile
                self._check(recognizer, waves)
                return _traced(recognizer, waves) or self._candidate.built_profile

    def _check(self, recognizer: Recognizer, waves: Sequence[Waveform]) -> None:
        for index, wave in enumerate(waves):
            recognizer.check(wave, f"piece {index}")
        if isinstance(recognizer, WhisperRecognizer) and len(waves) > recognizer.most_clips:
            raise AudioError(
                f"{len(waves)} clips, and it decodes {recognizer.most_clips} together at most"
            )


def _traced(recognizer: Recognizer, waves: Sequence[Waveform]) -> Profile | None:
    """Return where the time of a run goes, or of the parts with tokens that are given."""
    graphs: list[tuple[Session | Seq2SeqSession, int]]
    if isinstance(recognizer, WhisperRecognizer):
        for _ in range(1 + _PROFILED_RUNS):
            parts = time_parts(recognizer, waves)
        runs = {ENCODER: len(waves), PREFILL: 1, STEP: len(parts.later)}
        graphs = [(recognizer.session.graphs[name], count) for name, count in runs.items()]
    else:
        for _ in range(1 + _PROFILED_RUNS):
            run_once(recognizer, waves)
        graphs = [(recognizer.session, 1)]
    seconds = len(waves[0]) / recognizer.spec.sample_rate_hz
    profiles = [
        (profile_from_trace(graph.end_profiling(), seconds), count)
        for graph, count in graphs
        if isinstance(graph, OnnxRuntimeSession)
    ]
    return joined_profile(profiles) if profiles else None


class CandidateProcess:
    """The process, as its parent sees it; a context manager.

    Its methods raise CandidateError where the candidate fails, or where the process dies.
    """

    def __init__(self, candidate: Candidate, threads: int | None) -> None:
        ours, theirs = Pipe()
        self._connection = ours
        with theirs, interrupts_blocked():
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _PROGRAM.format(path=sys.path, module=__name__, descriptor=theirs.fileno()),
                ],
                **_inheriting(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                # What libraries print must not end up in a JSON document on stdout.
                stdout=sys.stderr.fileno() if _has_number(sys.stderr) else subprocess.DEVNULL,
            )
        ours.send((candidate, threads))

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, where it has not ended."""
        self._connection.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self) -> Opened:
        """Open the candidate."""
        opened: Opened = self._call("open")
        return opened

    def take(self, waves: Sequence[Waveform]) -> None:
        """Hand over the batch to run; raises UnsuitableError where the candidate refuses it."""
        self._call("take", waves)

    def run(self) -> Sample:
        """Run the batch once; raises UnsuitableError where there is nothing to run on in it."""
        sample: Sample = self._call("run")
        return sample

    def peak_bytes(self) -> int | None:
        """Return the most memory that the process has held."""
        peak: int | None = self._call("peak_bytes")
        return peak

    def evaluate(
        self, clips: Sequence[LabelledClip], normalizer: str, on_step: OnStep | None = None
    ) -> Accuracy:
        """Count the errors on `clips`; raises UnsuitableError where it refuses one of them."""
        accuracy: Accuracy = self._call("evaluate", clips, normalizer, on_step=on_step)
        return accuracy

    def profile(self, waves: Sequence[Waveform]) -> Profile | None:
        """Return where the time of one run goes, None where the backend does not tell.

        Raises UnsuitableError where the candidate refuses the batch.
        """
        profile: Profile | None = self._call("profile", waves)
        return profile

    def _call(self, name: str, *arguments: object, on_step: OnStep | None = None) -> Any:
        try:
            self._connection.send((name, arguments))
            while True:
                if not self._connection.poll(_ANSWER_SECONDS):
                    self._process.kill()
                    raise CandidateError(f"it did not answer for {_ANSWER_SECONDS / 60:g} minutes")
                kind, value = self._connection.recv()
                if kind == "step":
                    if on_step is not None:
                        on_step(*value)
                    continue
                break
        except (EOFError, OSError) as error:
            raise CandidateError(self._death()) from error
        if kind == "unsuitable":
            raise UnsuitableError(value)
        if kind == "error":
            raise CandidateError(value)
        return value

    def _death(self) -> str:
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process stopped answering"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            return "its process was killed, as a system does when it runs out of memory"
        return f"its process crashed ({name})"


def _inheriting(number: int) -> dict[str, Any]:
    """Return what makes Popen hand a pipe's end, which has this number, to the process."""
    if sys.platform != "win32":
        return {"pass_fds": [number]}
    os.set_handle_inheritable(number, True)
    return {
        "startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [number]}),
        # Ctrl-C is for the parent, which then hangs up.
        "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP,
    }


def _pipe_end(number: int) -> Any:
    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection

        return PipeConnection(number)
    return Connection(number)


def _has_number(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def serve(connection: Connection) -> None:
    """Do what the parent asks for; raises EOFError or ConnectionError when it has hung up."""
    candidate, threads = connection.recv()
    worker = Worker(candidate, threads)
    while True:
        name, arguments = connection.recv()
        options: dict[str, Callable[[int, int], None]] = {}
        if name == "evaluate":
            options["on_step"] = lambda done, total: connection.send(("step", (done, total)))
        try:
            answer = ("done", getattr(worker, name)(*arguments, **options))
        except AudioError as error:
            answer = ("unsuitable", str(error))
        except Exception as error:  # the parent says what failed, and measures the others
            answer = ("error", one_line(error) or type(error).__name__)
        connection.send(answer)


def main(descriptor: int) -> None:
    """Serve the parent at the other end of a pipe until it hangs up, interrupted or killed."""
    with _pipe_end(descriptor) as to_parent, suppress(EOFError, ConnectionError):
        serve(to_parent)
