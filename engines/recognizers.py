"""What transcribes, whichever family its model is of."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from speechquant.core.audio import Audio, Waveform, read_audio
from speechquant.core.engine_folders import Limits
from speechquant.core.progress import OnStep
from speechquant.core.specs import Spec
from speechquant.core.transcripts.records import Transcript
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.runners import Session


class Hearing(Protocol):
    """A clip on its way through a recognizer."""

    @property
    def key(self) -> Hashable:
        """What clips share that can go on together."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether all of it was heard."""
        ...

    @property
    def share_done(self) -> float:
        """How much of it was heard, of 1."""
        ...


class Recognizer(Protocol):
    """A session with what goes before and after it; a context manager.

    `decoding` is how a model is asked that writes token by token, None for how it was asked when
    it was opened.
    """

    @property
    def spec(self) -> Spec:
        """What the model is."""
        ...

    @property
    def session(self) -> Session | Seq2SeqSession:
        """What runs the model's graphs."""
        ...

    @property
    def provider(self) -> str:
        """What the session runs on."""
        ...

    @property
    def max_clip_seconds(self) -> float:
        """The longest clip that it takes."""
        ...

    @property
    def takes_timestamps(self) -> bool:
        """Whether it can be asked for segments with their times."""
        ...

    @property
    def gives_words(self) -> bool:
        """Whether it tells when each word is said."""
        ...

    @property
    def samples_at_once(self) -> Limits:
        """The lengths that one call of the model hears well, in samples."""
        ...

    def __enter__(self) -> Recognizer: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def check(self, wave: Waveform, name: str) -> None:
        """Raise AudioError, naming the clip, where the model cannot take `wave`."""
        ...

    def read(self, audio: Audio) -> Waveform:
        """Return a file or a part of it as the model takes it; raises AudioError."""
        ...

    def transcribe(
        self,
        waveforms: Sequence[NDArray[Any]],
        on_step: OnStep | None = None,
        *,
        decoding: DecodingOptions | None = None,
    ) -> list[str]:
        """Return the text of each mono waveform, which must be at the model's sample rate.

        Raises AudioError, and OptionError where the model cannot be asked so.
        """
        ...

    def recognize(
        self,
        waveforms: Sequence[NDArray[Any]],
        on_step: OnStep | None = None,
        *,
        decoding: DecodingOptions | None = None,
    ) -> list[Transcript]:
        """Return the text of each mono waveform and when it was said; raises as `transcribe`."""
        ...

    def check_asked(self, decoding: DecodingOptions) -> None:
        """Raise OptionError where the model cannot be asked so."""
        ...

    def begin(self, wave: Waveform, decoding: DecodingOptions) -> Hearing:
        """Return a clip of which nothing was heard; raises AudioError and OptionError.

        `advance` takes it on, of this recognizer or of another one of the same model.
        """
        ...

    def advance(self, hearings: Sequence[Any]) -> None:
        """Take clips of one key a step further, a chunk at most each."""
        ...

    def heard(self, hearing: Any) -> Transcript:
        """Return what was heard of a clip so far."""
        ...


class FilesAndTexts:
    """How every recognizer reads a file, and gives texts where no times are asked for."""

    def read(self: Recognizer, audio: Audio) -> Waveform:
        """Return a file or a part of it as the model takes it; raises AudioError."""
        wave = read_audio(audio, self.spec.sample_rate_hz, self.max_clip_seconds)
        self.check(wave, str(audio))
        return wave

    def transcribe(
        self: Recognizer,
        waveforms: Sequence[NDArray[Any]],
        on_step: OnStep | None = None,
        *,
        decoding: DecodingOptions | None = None,
    ) -> list[str]:
        """Return the text of each mono waveform, which must be at the model's sample rate."""
        transcripts = self.recognize(waveforms, on_step, decoding=decoding)
        return [transcript.text for transcript in transcripts]
