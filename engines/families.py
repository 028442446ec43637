"""What transcribes a bundle or an engine, whichever family its model is of."""

from __future__ import annotations

from pathlib import Path

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine
from speechquant.core.errors import OptionError
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.engines.ctc.recognizer import Recognizer, open_ctc_recognizer
from speechquant.engines.session import load_source, open_decoder_session
from speechquant.engines.whisper.recognizer import (
    DecodingOptions,
    WhisperRecognizer,
    require_known,
)

AnyRecognizer = Recognizer | WhisperRecognizer


def open_recognizer(
    source: Bundle | Engine | str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    decoding: DecodingOptions | None = None,
    profile_to: Path | None = None,
) -> AnyRecognizer:
    """Return what transcribes `source`; `decoding` is for models that write token by token.

    The other options are those of `open_session`.
    Raises BundleError, EngineError and OptionError.
    """
    source = load_source(source)
    if isinstance(source.spec, Seq2SeqSpec):
        # Before anything is loaded, which takes a moment.
        require_known(source.spec, decoding or DecodingOptions(), source.folder)
        session = open_decoder_session(
            source, provider=provider, threads=threads, profile_to=profile_to
        )
        return WhisperRecognizer(source, session, decoding)
    if decoding not in (None, DecodingOptions()):
        raise OptionError(
            f"{source.folder}: not a Whisper model, which alone has a language, a task and "
            "timestamps; leave these away"
        )
    return open_ctc_recognizer(source, provider=provider, threads=threads, profile_to=profile_to)
