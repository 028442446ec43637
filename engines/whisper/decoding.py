"""From the encoder's output to tokens: greedy, by beams, or drawn at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines.decoder_session import DecoderRun, Hidden, Seq2SeqSession, Tokens
from speechquant.engines.whisper.beams import search_beams
from speechquant.engines.whisper.token_rules import Scores, TokenRules, log_sum_exp


@dataclass(frozen=True)
class Decoded:
    """What was decoded for one clip: tokens without the end.

    `log_probability` is the mean of the tokens', the end's among them; `no_speech` the probability
    that nothing is said, 0 where the model does not tell; `temperature` what it was decoded at.
    """

    tokens: tuple[int, ...]
    log_probability: float
    no_speech: float
    temperature: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What a batch of clips is asked: `prompts` is [clips, tokens].

    Above a `temperature` of 0 tokens are drawn, each clip's by its own of `draws`; at 0 the best of
    so many `beams` is taken. A transcript starts at the token number `start` of the prompts, behind
    what was said before.
    """

    prompts: Tokens
    temperature: float = 0.0
    draws: Sequence[np.random.Generator] = ()
    beams: int = 1
    start: int = 0


def decode(
    session: Seq2SeqSession,
    hidden: Hidden,
    asked: Asked,
    rules: TokenRules,
    spec: GenerationSpec,
    begun: DecoderRun | None = None,
) -> list[Decoded]:
    """Return what follows the prompts, each clip until its own end.

    `begun` is a run that was given the first token of each prompt alone; it goes on here.
    """
    prompts = asked.prompts
    run = begun or session.start(hidden, prompts)
    logits = run.prompt_logits[:, -1]
    for tokens in prompts[:, run.prompt_logits.shape[1] :].T:
        logits = run.advance(tokens.tolist())
    if asked.beams > 1 and asked.temperature == 0:
        room = spec.room_after(prompts.shape[1])
        beams = search_beams(run, logits, asked.beams, rules, spec, room)
        return [
            Decoded(beam.tokens, beam.mean, float(silence))
            for beam, silence in zip(beams, _no_speech(run, spec, asked.start), strict=True)
        ]
    heard = [_Heard() for _ in prompts]
    running = list(range(len(prompts)))  # the clips in the run, by its rows
    for step in range(spec.room_after(prompts.shape[1])):
        scores = rules.apply(logits, [heard[clip].tokens for clip in running], is_first=step == 0)
        totals = log_sum_exp(scores)
        chosen: list[int] = scores.argmax(axis=-1).tolist()
        left = []
        for row, clip in enumerate(running):
            if heard[clip].has_ended:
                continue
            if asked.temperature > 0:
                chosen[row] = _drawn(scores[row], asked.temperature, asked.draws[clip])
            heard[clip].add(chosen[row], scores[row, chosen[row]] - totals[row], spec.end)
            if not heard[clip].has_ended:
                left.append(row)
        if not left:
            break
        # Each row costs its caches' bytes at every token; to copy half of them takes about as long
        # as four tokens.
        if 2 * len(left) <= len(running):
            run.keep(left)
            running, chosen = [running[row] for row in left], [chosen[row] for row in left]
        logits = run.advance(chosen)
    silences = _no_speech(run, spec, asked.start)
    return [
        clip.decoded(float(silence), asked.temperature)
        for clip, silence in zip(heard, silences, strict=True)
    ]


@dataclass
class _Heard:
    """What a clip has been heard to say so far; `total` is the log probability of all of it."""

    tokens: list[int] = field(default_factory=list)
    has_ended: bool = False
    total: float = 0.0

    def add(self, token: int, log_probability: float, end: int) -> None:
        self.total += log_probability
        if token == end:
            self.has_ended = True
        else:
            self.tokens.append(token)

    def decoded(self, no_speech: float, temperature: float) -> Decoded:
        count = len(self.tokens) + self.has_ended
        probability = float(self.total) / max(count, 1)
        return Decoded(tuple(self.tokens), probability, no_speech, temperature)


def _no_speech(run: DecoderRun, spec: GenerationSpec, start: int) -> NDArray[np.float64]:
    if spec.no_speech is None:
        return np.zeros(len(run.prompt_logits))
    at_start = run.prompt_logits[:, start]
    return np.exp(at_start[:, spec.no_speech] - log_sum_exp(at_start))


def _drawn(scores: Scores, temperature: float, draw: np.random.Generator) -> int:
    # In float64: the generator wants a sum of one to more digits than float32 has.
    weights = np.exp((scores - scores.max()).astype(np.float64) / temperature)
    return int(draw.choice(len(weights), p=weights / weights.sum()))
