"""Clients that ask again and again, and what they were answered."""

from __future__ import annotations

import http.client
import io
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import soundfile

from speechquant.benchmarks.load.hostile import PATH
from speechquant.core.audio import Waveform

_TIMEOUT_SECONDS = 300.0
_OK, _UNAVAILABLE = 200, 503


@dataclass(frozen=True, eq=False)
class SpokenClip:
    """A clip, and the text that the model writes of it alone."""

    wave: Waveform
    rate_hz: int
    text: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.wave) / self.rate_hz

    @cached_property
    def content(self) -> bytes:
        """A wav file of floats, which loses nothing."""
        target = io.BytesIO()
        soundfile.write(target, self.wave, self.rate_hz, format="WAV", subtype="FLOAT")
        return target.getvalue()


@dataclass(frozen=True)
class Answered:
    """How a request went: `status` None where the connection broke."""

    clip: SpokenClip
    status: int | None
    text: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def differs(self) -> bool:
        """Whether the text is another one than the model writes of the clip alone."""
        return self.status == _OK and self.text != self.clip.text


@dataclass
class Load:
    """Clients at work; `stop` ends them after the answers that they wait for."""

    host: str
    port: int
    model: str
    clips: Sequence[SpokenClip]
    token: str = ""
    answers: list[Answered] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, clients: int, seconds: float) -> float:
        """Ask for so long, or until the server ends; return the time until the last answer."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, began + seconds - time.monotonic()))
        self.stop.set()
        for thread in threads:
            thread.join()
        return time.monotonic() - began

    def _ask(self, number: int) -> None:
        random_ = random.Random(number)  # noqa: S311
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT_SECONDS)
        while not self.stop.is_set():
            answer = self._answer(connection, random_.choice(self.clips))
            self.answers.append(answer)
            if answer.status in (None, _UNAVAILABLE):
                break
        connection.close()

    def _answer(self, connection: http.client.HTTPConnection, clip: SpokenClip) -> Answered:
        head = f'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n{self.model}\r\n'
        head += '--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body = head.encode() + clip.content + b"\r\n--b--\r\n"
        began = time.monotonic()
        try:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            if self.token:
                headers["authorization"] = f"Bearer {self.token}"
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            return Answered(clip, None, "", began, time.monotonic())
        text = json.loads(content).get("text", "") if answer.status == _OK else ""
        return Answered(clip, answer.status, text, began, time.monotonic())


def percentile_ms(answers: Sequence[Answered], percent: float) -> float:
    """Return a percentile of the answers' times, in milliseconds."""
    return 1000 * float(np.percentile([answer.seconds for answer in answers], percent))
