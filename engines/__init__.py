"""Running a bundle or an engine, quantizing a bundle, and building an engine from it."""

from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.qdq import Spelling
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.recognizer import Recognizer, open_recognizer
from speechquant.engines.session import Session, open_session

__all__ = [
    "BuildOptions",
    "Recognizer",
    "Session",
    "Spelling",
    "build_engine",
    "open_recognizer",
    "open_session",
    "quantize_bundle",
]
