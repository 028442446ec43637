"""Students keep their teacher's encoder, so what it gave for a clip is computed once for all."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.seq2seq import ENCODER
from speechquant.engines.decoder_session import Hidden, Seq2SeqSession

_MOST_BYTES = 2 << 30


class KnownEncoders:
    """What the last encoder gave, by its features; of many clips the first ones only."""

    def __init__(self) -> None:
        self._encoder = ""
        self._outputs: dict[str, Hidden] = {}

    def session(self, bundle: Bundle, session: Seq2SeqSession) -> Seq2SeqSession:
        """Return a session of the same graphs that encodes what is not known only."""
        digest = hashlib.sha256()
        for path in sorted(bundle.folder.glob(f"{ENCODER}.*")):  # the graph and its weights
            digest.update(path.read_bytes())
        if digest.hexdigest() != self._encoder:
            self._encoder, self._outputs = digest.hexdigest(), {}
        return _Session(session, self._outputs)


class _Session(Seq2SeqSession):
    def __init__(self, session: Seq2SeqSession, outputs: dict[str, Hidden]) -> None:
        super().__init__(session.graphs)
        self._outputs = outputs

    def encode(self, features: NDArray[np.float32]) -> Hidden:
        return np.concatenate([self._encode_one(row[None]) for row in features])

    def _encode_one(self, features: NDArray[np.float32]) -> Hidden:
        key = hashlib.sha256(features.tobytes()).hexdigest()
        found = self._outputs.get(key)
        if found is None:
            found = super().encode(features)
            if (len(self._outputs) + 1) * found.nbytes <= _MOST_BYTES:
                self._outputs[key] = found
        return found
