"""A request's way through the queue, seen from the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, TypeVar

from speechquant.core.audio import Waveform
from speechquant.core.errors import AudioError
from speechquant.core.transcripts.records import Transcript
from speechquant.engines.recognizers import Hearing
from speechquant.serve.errors import ApiError
from speechquant.serve.fields import Asked
from speechquant.serve.options import Limits
from speechquant.serve.scheduler import Job
from speechquant.serve.uploads import waveform_of

Given = TypeVar("Given")

# Decoders and resamplers that run at once, beside the models.
_DECODERS = 2


class Waiting:
    """How many seconds of audio wait or run, of all models."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._seconds = limits, 0.0
        self.decoders = ThreadPoolExecutor(_DECODERS, "decoder")

    def take(self, seconds: float) -> None:
        """Add some; raises ApiError where there is no room."""
        if self._seconds and self._seconds + seconds > self._limits.waiting_seconds:
            raise ApiError(
                429,
                f"{self._seconds:.0f} s of audio wait, as much as is taken; try again.",
                code="queue_full",
            )
        self._seconds += seconds

    def release(self, seconds: float) -> None:
        """Take them away again."""
        self._seconds = max(0.0, self._seconds - seconds)


class HeardClip:
    """A clip in the queue of its model; to be closed, which takes it out."""

    def __init__(self, asked: Asked, waiting: Waiting, hearing: Hearing, seconds: float) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def on_change() -> None:
            # A server that is ended by force has no loop any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        self._changed = changed
        self.seconds = seconds
        self._asked, self._waiting = asked, waiting
        self._job = Job(hearing, seconds, on_change)
        waiting.take(seconds)
        asked.model.scheduler.submit(self._job)

    async def transcripts(self) -> AsyncIterator[Transcript]:
        """Yield what was heard so far, after each chunk; raises ApiError."""
        is_over = False
        while not is_over:
            await self._changed.wait()
            self._changed.clear()
            is_over = self._job.is_over
            if self._job.error is not None:
                raise ApiError(500, "The model failed on this clip.", code="model_failed")
            yield self._job.transcript

    async def transcript(self) -> Transcript:
        """Return all of it; raises ApiError."""
        heard = Transcript("")
        async for heard in self.transcripts():  # noqa: B007 - the last one is all of it
            pass
        return heard

    def close(self) -> None:
        """Free its place."""
        self._asked.model.scheduler.give_up(self._job)
        self._waiting.release(self.seconds)


class ClientGoneError(Exception):
    """Nobody waits for the answer."""


async def begun(asked: Asked, upload: BinaryIO, limits: Limits, waiting: Waiting) -> HeardClip:
    """Return a clip in the queue; raises ApiError."""
    recognizer = asked.model.recognizer

    left = threading.Event()

    def prepared() -> tuple[Waveform, Hearing]:
        wave = waveform_of(upload, recognizer, limits.audio_seconds)
        if left.is_set():  # features of an hour take seconds
            raise ClientGoneError
        return wave, recognizer.begin(wave, asked.decoding)

    try:
        # Cancelled while it waits for a thread, as where the client goes away, it never runs.
        wave, hearing = await asyncio.wrap_future(waiting.decoders.submit(prepared))
    except AudioError as error:
        raise ApiError(400, str(error), field="file", code="invalid_audio") from error
    except asyncio.CancelledError:
        left.set()
        raise
    return HeardClip(asked, waiting, hearing, len(wave) / recognizer.spec.sample_rate_hz)


async def unless_gone(work: Awaitable[Given], gone: Callable[[], Awaitable[None]]) -> Given:
    """Return what `work` gives; raises ClientGoneError where `gone` returns first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
