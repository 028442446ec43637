"""Running a bundle or an engine, quantizing a bundle, and building an engine from it."""

from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.ctc.recognizer import CtcRecognizer
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.graphs.qdq import Spelling
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.session import Session, open_session
from speechquant.engines.whisper.recognizer import WhisperRecognizer

__all__ = [
    "BuildOptions",
    "CtcRecognizer",
    "DecodingOptions",
    "Recognizer",
    "Session",
    "Spelling",
    "WhisperRecognizer",
    "build_engine",
    "open_recognizer",
    "open_session",
    "quantize_bundle",
]
