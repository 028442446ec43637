"""Running a bundle: `open_session(bundle)` for tensors, `open_recognizer(bundle)` for text."""

from speechquant.engines.recognizer import Recognizer, open_recognizer
from speechquant.engines.session import Session, open_session

__all__ = ["Recognizer", "Session", "open_recognizer", "open_session"]
