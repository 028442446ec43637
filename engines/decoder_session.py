"""The graphs of an encoder-decoder model as one session, whatever runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import EngineError
from speechquant.core.seq2seq import ALIGN, ENCODER, PREFILL, STEP

if TYPE_CHECKING:
    from speechquant.engines.runners import BoundSession, Tensors

Logits = NDArray[np.float32]
Hidden = NDArray[np.float32]
Tokens = NDArray[np.int64]
Entered = TypeVar("Entered", bound="Seq2SeqSession")

_TOKENS, _HIDDEN, _LOGITS = "tokens", "hidden", "logits"
_ATTENTION = "attention"
_GROWN = "new_"


class Seq2SeqSession:
    """Encodes, and starts runs of the decoder; a context manager. Threads may share it.

    It is made of sessions by graph, all of one backend; `beside` is what a graph takes beside
    features, tokens and caches, asked for at each run. `open_align` opens the graph that aligns
    tokens, once it is needed.
    """

    def __init__(
        self,
        graphs: Mapping[str, BoundSession],
        beside: Callable[[str], Tensors] | None = None,
        open_align: Callable[[], BoundSession] | None = None,
    ) -> None:
        self._graphs: Mapping[str, BoundSession] | None = graphs
        self._beside = beside or (lambda graph: {})
        self._open_align, self._opening = open_align, threading.Lock()
        self.encoder = graphs[ENCODER]
        self.provider = self.encoder.provider

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        graphs, self._graphs = self._graphs or {}, None
        with ExitStack() as stack:  # all of them, also where one fails to close
            for graph in graphs.values():
                stack.push(graph)

    def encode(self, features: NDArray[np.float32]) -> Hidden:
        """Return [clips, positions, size] of [clips, mel bins, frames]."""
        encoder = self.graphs[ENCODER]
        # One after the other: together they take as long, and gigabytes for attention's scores.
        rows = [encoder.run({"features": row[None]})[_HIDDEN] for row in features]
        return np.concatenate(rows, dtype=np.float32)

    def start(self, hidden: Hidden, prompts: Tokens) -> DecoderRun:
        """Return a run of the decoder after `prompts` [clips, tokens]."""
        given: Tensors = {_TOKENS: prompts, _HIDDEN: hidden, **self._beside(PREFILL)}
        return DecoderRun(self.graphs[PREFILL], self.graphs[STEP], given, self._beside(STEP))

    def attention(self, hidden: Hidden, tokens: Tokens) -> NDArray[np.float32]:
        """Return what the alignment heads pay to the encoder, [clips, heads, tokens, positions].

        `tokens` [clips, tokens] are a prompt and what was decoded after it.
        """
        with self._opening:
            if ALIGN not in self.graphs:
                if self._open_align is None:
                    raise EngineError(f"this session has no {ALIGN}; open one of a bundle that has")
                self._graphs = {**self.graphs, ALIGN: self._open_align()}
        outputs = self.graphs[ALIGN].run({_TOKENS: tokens, _HIDDEN: hidden})
        return np.asarray(outputs[_ATTENTION], np.float32)

    @property
    def graphs(self) -> Mapping[str, BoundSession]:
        """The sessions by graph; raises EngineError once they are closed."""
        if self._graphs is None:
            raise EngineError("this session is closed; open another")
        return self._graphs


class DecoderRun:
    """One batch of clips on its way through the decoder, token by token.

    What a step gives is what the next one is given, without becoming an array, and the keys and
    values of the encoder are bound once; `keep` alone copies them.
    """

    def __init__(
        self, prefill: BoundSession, step: BoundSession, given: Tensors, beside_steps: Tensors
    ) -> None:
        first, self._runs, self._step = prefill.new_runs(), step.new_runs(), step
        for name, array in given.items():
            first.bind(name, prefill.value_of(array))
        caches = first.run()
        self.prompt_logits: Logits = prefill.array_of(caches.pop(_LOGITS))
        self._caches = caches
        self._grown: tuple[str, ...] = ()
        for name, value in caches.items():
            self._runs.bind(name, value)
        for name, array in beside_steps.items():
            self._runs.bind(name, step.value_of(array))

    def advance(self, tokens: Sequence[int]) -> Logits:
        """Return the logits [clips, vocabulary] after one more token of each clip."""
        self._runs.bind(_TOKENS, self._step.value_of(np.asarray(tokens, np.int64)[:, None]))
        outputs = self._runs.run()
        logits: Logits = self._step.array_of(outputs.pop(_LOGITS))[:, 0]
        # Every one of them at every step: what a run gives is not good for long.
        self._grown = tuple(name.removeprefix(_GROWN) for name in outputs)
        for name, value in zip(self._grown, outputs.values(), strict=True):
            self._rebind(name, value)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of the clips alone, any of them several times; copies their caches."""
        self._take(rows, tuple(self._caches))

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on as `keep` does, each row with its own clip: copies the tokens' caches alone.

        A token must have been given before.
        """
        if list(rows) != list(range(len(rows))):
            self._take(rows, self._grown)

    def _take(self, rows: Sequence[int], caches: Sequence[str]) -> None:
        for name in caches:
            array = self._step.array_of(self._caches[name])
            self._rebind(name, self._step.value_of(array[list(rows)]))

    def _rebind(self, cache: str, value: Any) -> None:
        self._caches[cache] = value
        self._runs.bind(cache, value)
