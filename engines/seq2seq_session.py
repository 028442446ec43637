"""The three graphs of an encoder-decoder model, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import BundleError, EngineError
from speechquant.core.seq2seq import ENCODER, PREFILL, STEP, Seq2SeqBundle
from speechquant.engines.backends import CPU
from speechquant.engines.onnxruntime_session import session_options

Logits = NDArray[np.float32]
Hidden = NDArray[np.float32]
Tokens = NDArray[np.int64]
Entered = TypeVar("Entered", bound="Seq2SeqSession")

_TOKENS, _HIDDEN, _LOGITS = "tokens", "hidden", "logits"
_GROWN = "new_"


class Seq2SeqSession:
    """Encodes, and starts runs of the decoder; a context manager. Threads may share it."""

    provider = CPU

    def __init__(self, bundle: Seq2SeqBundle, threads: int | None = None) -> None:
        self._encoder, self._prefill, self._step = (
            _opened(bundle.graph_path(name), bundle.folder, threads)
            for name in (ENCODER, PREFILL, STEP)
        )

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # ONNX Runtime frees the graphs with the objects; nothing else holds them.
        self._encoder = self._prefill = self._step = None

    def encode(self, features: NDArray[np.float32]) -> Hidden:
        """Return [clips, positions, size] of [clips, mel bins, frames]."""
        if self._encoder is None:
            raise EngineError("this session is closed; open another")
        # One after the other: together they take as long, and gigabytes for attention's scores.
        rows = [self._encoder.run([_HIDDEN], {"features": row[None]})[0] for row in features]
        return np.concatenate(rows, dtype=np.float32)

    def start(self, hidden: Hidden, prompts: Tokens) -> DecoderRun:
        """Return a run of the decoder after `prompts` [clips, tokens]."""
        if self._prefill is None:
            raise EngineError("this session is closed; open another")
        return DecoderRun(self._prefill, self._step, hidden, prompts)


def _opened(path: Path, folder: Path, threads: int | None) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            path, session_options(threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{folder}: ONNX Runtime refuses {path.name} ({reason}); "
            'export it again with "speechquant export"'
        ) from error


class DecoderRun:
    """One batch of clips on its way through the decoder, token by token.

    What a step gives is what the next one is given, without becoming an array, and the keys and
    values of the encoder are bound once; `keep` alone copies them.
    """

    def __init__(self, prefill: Any, step: Any, hidden: Hidden, prompts: Tokens) -> None:
        outputs = _run_bound(prefill, {_TOKENS: _value(prompts), _HIDDEN: _value(hidden)})
        self.prompt_logits: Logits = outputs.pop(_LOGITS).numpy()
        self._step, self._binding = step, step.io_binding()
        for name, value in outputs.items():
            self._binding.bind_ortvalue_input(name, value)
        # The binding holds no reference to what is bound.
        self._caches = outputs
        self._outputs = [output.name for output in step.get_outputs()]

    def advance(self, tokens: Sequence[int]) -> Logits:
        """Return the logits [clips, vocabulary] after one more token of each clip."""
        given = _value(np.asarray(tokens, np.int64)[:, None])
        self._binding.bind_ortvalue_input(_TOKENS, given)
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        self._step.run_with_iobinding(self._binding)
        outputs = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        logits: Logits = outputs.pop(_LOGITS).numpy()[:, 0]
        for name, value in outputs.items():
            cache = name.removeprefix(_GROWN)
            self._binding.bind_ortvalue_input(cache, value)
            self._caches[cache] = value
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of the clips alone; copies their caches."""
        for name, value in self._caches.items():
            kept = _value(value.numpy()[list(rows)])
            self._binding.bind_ortvalue_input(name, kept)
            self._caches[name] = kept


def _value(array: NDArray[Any]) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _run_bound(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))
