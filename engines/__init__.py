"""Running a bundle, `open_session` and `open_recognizer`, and quantizing it, `quantize_bundle`."""

from speechquant.engines.qdq import Spelling
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.recognizer import Recognizer, open_recognizer
from speechquant.engines.session import Session, open_session

__all__ = [
    "Recognizer",
    "Session",
    "Spelling",
    "open_recognizer",
    "open_session",
    "quantize_bundle",
]
