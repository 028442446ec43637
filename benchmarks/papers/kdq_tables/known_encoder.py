"""Students keep their teacher's encoder, so what it gave for a clip is computed once for all."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.seq2seq import ENCODER
from speechquant.engines.decoder_session import Hidden, Seq2SeqSession


class KnownEncoders:
    """What encoders gave, by the encoder and its features."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[str, str], Hidden] = {}

    def session(self, bundle: Bundle, session: Seq2SeqSession) -> Seq2SeqSession:
        """Return a session of the same graphs that encodes what is not known only."""
        digest = hashlib.sha256()
        for path in sorted(bundle.folder.glob(f"{ENCODER}.*")):  # the graph and its weights
            digest.update(path.read_bytes())
        return _Session(session, digest.hexdigest(), self._outputs)


class _Session(Seq2SeqSession):
    def __init__(
        self, session: Seq2SeqSession, encoder: str, outputs: dict[tuple[str, str], Hidden]
    ) -> None:
        super().__init__(session.graphs)
        self._encoder, self._outputs = encoder, outputs

    def encode(self, features: NDArray[np.float32]) -> Hidden:
        return np.concatenate([self._encode_one(row[None]) for row in features])

    def _encode_one(self, features: NDArray[np.float32]) -> Hidden:
        key = self._encoder, hashlib.sha256(features.tobytes()).hexdigest()
        if key not in self._outputs:
            self._outputs[key] = super().encode(features)
        return self._outputs[key]
