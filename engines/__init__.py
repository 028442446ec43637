"""Running a bundle or an engine, quantizing a bundle, and building an engine from it."""

from typing import TYPE_CHECKING

from speechquant.core.lazy import lazy_names

if TYPE_CHECKING:
    from speechquant.engines.build import build_engine
    from speechquant.engines.build_options import BuildOptions
    from speechquant.engines.ctc.recognizer import CtcRecognizer
    from speechquant.engines.decoding_options import DecodingOptions
    from speechquant.engines.families import open_recognizer
    from speechquant.engines.graphs.qdq import QdqFormat
    from speechquant.engines.quantize import quantize_bundle
    from speechquant.engines.recognizers import Recognizer
    from speechquant.engines.runners import Session
    from speechquant.engines.session import open_session
    from speechquant.engines.whisper.recognizer import WhisperRecognizer

__all__ = [
    "BuildOptions",
    "CtcRecognizer",
    "DecodingOptions",
    "QdqFormat",
    "Recognizer",
    "Session",
    "WhisperRecognizer",
    "build_engine",
    "open_recognizer",
    "open_session",
    "quantize_bundle",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BuildOptions": "speechquant.engines.build_options",
        "CtcRecognizer": "speechquant.engines.ctc.recognizer",
        "DecodingOptions": "speechquant.engines.decoding_options",
        "Recognizer": "speechquant.engines.recognizers",
        "Session": "speechquant.engines.runners",
        "QdqFormat": "speechquant.engines.graphs.qdq",
        "WhisperRecognizer": "speechquant.engines.whisper.recognizer",
        "build_engine": "speechquant.engines.build",
        "open_recognizer": "speechquant.engines.families",
        "open_session": "speechquant.engines.session",
        "quantize_bundle": "speechquant.engines.quantize",
    },
)
