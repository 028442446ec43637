"""From the encoder's output to tokens by beam search, as openai/whisper's with a patience of 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines.decoder_session import DecoderRun
from speechquant.engines.whisper.token_rules import Scores, TokenRules, log_sum_exp


@dataclass(frozen=True)
class Beam:
    """Tokens without the end, and the log probability of all of them, the end's where it came."""

    tokens: tuple[int, ...] = ()
    total: float = 0.0
    has_ended: bool = False

    @property
    def mean(self) -> float:
        """The log probability of a token, by which texts of any length compare."""
        return self.total / max(len(self.tokens) + self.has_ended, 1)


@dataclass(frozen=True)
class _Candidate:
    row: int
    beam: Beam


@dataclass
class _Search:
    """The beams of a clip that go on, and those that have ended."""

    width: int
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[Beam] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.ended) >= self.width

    @property
    def best(self) -> Beam:
        unended = self.beams[: max(0, self.width - len(self.ended))]
        return max([*self.ended, *unended], key=lambda beam: beam.mean)

    def step(self, log_probabilities: Scores, end: int) -> list[int]:
        """Go a token further; return the row that each beam goes on from."""
        kept: list[_Candidate] = []
        for candidate in self._likeliest(log_probabilities, end):
            if not candidate.beam.has_ended:
                kept.append(candidate)
            elif not self.is_done:
                self.ended.append(candidate.beam)
            if len(kept) == self.width:
                break
        self.beams = [candidate.beam for candidate in kept]
        return [candidate.row for candidate in kept]

    def _likeliest(self, log_probabilities: Scores, end: int) -> Iterator[_Candidate]:
        """Yield twice as many as go on: of each beam one at most has ended."""
        totals = np.array([beam.total for beam in self.beams])
        scores = (totals[:, None] + log_probabilities).ravel()
        most = min(2 * self.width, scores.size)
        found = np.argpartition(-scores, most - 1)[:most]
        for place in found[np.lexsort((found, -scores[found]))].tolist():
            row, token = divmod(place, log_probabilities.shape[1])
            before = self.beams[row].tokens
            tokens = before if token == end else (*before, token)
            yield _Candidate(row, Beam(tokens, float(scores[place]), token == end))


def search_beams(
    run: DecoderRun,
    logits: NDArray[np.float32],
    width: int,
    rules: TokenRules,
    spec: GenerationSpec,
    room: int,
) -> list[Beam]:
    """Return the best of each clip after at most `room` tokens; `logits` are those of the first."""
    searches = [_Search(width) for _ in logits]
    running = list(searches)  # the clips in the run, each with a row a beam
    for step in range(room):
        rows = [beam.tokens for search in running for beam in search.beams]
        scores = rules.apply(logits, rows, is_first=step == 0)
        scores -= log_sum_exp(scores)[:, None].astype(np.float32)
        sources = _stepped(running, scores, spec.end)
        left = [index for index, search in enumerate(running) if not search.is_done]
        if not left or step + 1 == room:
            break
        # As for one beam: to copy what the encoder gave takes as long as some tokens.
        if step == 0 or 2 * len(left) <= len(running):
            run.keep([row for index in left for row in sources[index]])
            running = [running[index] for index in left]
        else:
            run.reorder([row for rows_of_one in sources for row in rows_of_one])
        logits = run.advance([beam.tokens[-1] for search in running for beam in search.beams])
    return [search.best for search in searches]


def _stepped(running: Sequence[_Search], scores: Scores, end: int) -> list[list[int]]:
    """Step all searches; return the rows of the run that their beams go on from."""
    sources, first = [], 0
    for search in running:
        count = len(search.beams)
        if search.is_done:
            sources.append(list(range(first, first + count)))
        else:
            rows = search.step(scores[first : first + count], end)
            sources.append([first + row for row in rows])
        first += count
    return sources
