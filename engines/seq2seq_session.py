"""The three graphs of an encoder-decoder model, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import BundleError, EngineError
from speechquant.core.seq2seq import (
    ENCODER,
    GRAPHS,
    PREFILL,
    STEP,
    Seq2SeqBundle,
    graph_file,
)
from speechquant.engines.backends import CPU, configure_cpu, cpu_graph
from speechquant.engines.onnxruntime_session import session_options

Logits = NDArray[np.float32]
Hidden = NDArray[np.float32]
Tokens = NDArray[np.int64]
Tensors = Mapping[str, NDArray[Any]]
Entered = TypeVar("Entered", bound="Seq2SeqSession")

_TOKENS, _HIDDEN, _LOGITS = "tokens", "hidden", "logits"
_GROWN = "new_"


class Seq2SeqSession:
    """Encodes, and starts runs of the decoder; a context manager. Threads may share it.

    It is made of ONNX Runtime's sessions by graph; `beside` is what a graph takes beside features,
    tokens and caches, asked for at each run.
    """

    provider = CPU

    def __init__(
        self,
        sessions: Mapping[str, Any],
        beside: Callable[[str], Mapping[str, NDArray[Any]]] | None = None,
    ) -> None:
        self._sessions: Mapping[str, Any] | None = sessions
        self._beside = beside or (lambda graph: {})

    @classmethod
    def of(cls, bundle: Seq2SeqBundle, threads: int | None = None) -> Seq2SeqSession:
        """Return the session of a bundle; raises BundleError."""
        return cls({name: _opened(bundle, name, threads) for name in GRAPHS})

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # ONNX Runtime frees the graphs with the objects; nothing else holds them.
        self._sessions = None

    def encode(self, features: NDArray[np.float32]) -> Hidden:
        """Return [clips, positions, size] of [clips, mel bins, frames]."""
        encoder, beside = self._open[ENCODER], self._beside(ENCODER)
        # One after the other: together they take as long, and gigabytes for attention's scores.
        rows = [encoder.run([_HIDDEN], {"features": row[None], **beside})[0] for row in features]
        return np.concatenate(rows, dtype=np.float32)

    def start(self, hidden: Hidden, prompts: Tokens) -> DecoderRun:
        """Return a run of the decoder after `prompts` [clips, tokens]."""
        own: dict[str, NDArray[Any]] = {_TOKENS: prompts, _HIDDEN: hidden}
        given = {**own, **self._beside(PREFILL)}
        return DecoderRun(self._open[PREFILL], self._open[STEP], given, self._beside(STEP))

    @property
    def _open(self) -> Mapping[str, Any]:
        if self._sessions is None:
            raise EngineError("this session is closed; open another")
        return self._sessions


def _opened(bundle: Seq2SeqBundle, name: str, threads: int | None) -> Any:
    import onnxruntime

    options = session_options(threads)
    configure_cpu(options)
    try:
        return onnxruntime.InferenceSession(
            cpu_graph(bundle.part(name), bundle.spec.precision),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{bundle.folder}: ONNX Runtime refuses {graph_file(name)} ({reason}); "
            'export it again with "speechquant export"'
        ) from error


class DecoderRun:
    """One batch of clips on its way through the decoder, token by token.

    What a step gives is what the next one is given, without becoming an array, and the keys and
    values of the encoder are bound once; `keep` alone copies them.
    """

    def __init__(self, prefill: Any, step: Any, given: Tensors, beside_steps: Tensors) -> None:
        outputs = _run_bound(prefill, {name: _value(array) for name, array in given.items()})
        self.prompt_logits: Logits = outputs.pop(_LOGITS).numpy()
        self._step, self._binding = step, step.io_binding()
        # The binding holds no reference to what is bound.
        self._caches = outputs
        self._beside = {name: _value(array) for name, array in beside_steps.items()}
        for name, value in (self._caches | self._beside).items():
            self._binding.bind_ortvalue_input(name, value)
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
