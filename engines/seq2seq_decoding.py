"""From the encoder's output to tokens: greedy, or drawn at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines.seq2seq_session import DecoderRun, Hidden, Seq2SeqSession, Tokens
from speechquant.engines.token_rules import Scores, TokenRules, log_sum_exp


@dataclass(frozen=True)
class Decoded:
    """What was decoded for one clip: tokens without the end.

    `log_probability` is the mean of the tokens', the end's among them; `no_speech` the probability
    that nothing is said, 0 where the model does not tell.
    """

    tokens: tuple[int, ...]
    log_probability: float
    no_speech: float


def decode(
    session: Seq2SeqSession,
    hidden: Hidden,
    prompts: Tokens,
    rules: TokenRules,
    spec: GenerationSpec,
    *,
    temperature: float = 0.0,
    draws: Sequence[np.random.Generator] = (),
    begun: DecoderRun | None = None,
) -> list[Decoded]:
    """Return what follows the prompts [clips, tokens], each clip until its own end.

    Above a `temperature` of 0 tokens are drawn, each clip's by its own of `draws`. `begun` is a run
    that was given the first token of each prompt alone; it goes on here.
    """
    run = begun or session.start(hidden, prompts)
    logits = run.prompt_logits[:, -1]
    for tokens in prompts[:, run.prompt_logits.shape[1] :].T:
        logits = run.advance(tokens.tolist())
    heard: list[list[int]] = [[] for _ in prompts]
    sums, counts = np.zeros(len(prompts)), np.zeros(len(prompts), np.int64)
    running = list(range(len(prompts)))  # the clips in the run, by its rows
    for step in range(spec.room_after(prompts.shape[1])):
        scores = rules.apply(logits, [heard[clip] for clip in running], is_first=step == 0)
        totals = log_sum_exp(scores)
        chosen: list[int] = scores.argmax(axis=-1).tolist()
        left = []
        for row, clip in enumerate(running):
            if counts[clip] > len(heard[clip]):  # it has ended: the end was counted too
                continue
            if temperature > 0:
                chosen[row] = _drawn(scores[row], temperature, draws[clip])
            sums[clip] += scores[row, chosen[row]] - totals[row]
            counts[clip] += 1
            if chosen[row] != spec.end:
                heard[clip].append(chosen[row])
                left.append(row)
        if not left:
            break
        # Each row costs its caches' bytes at every token; to copy half of them takes about as long
        # as four tokens.
        if 2 * len(left) <= len(running):
            run.keep(left)
            running, chosen = [running[row] for row in left], [chosen[row] for row in left]
        logits = run.advance(chosen)
    no_speech = np.zeros(len(prompts))
    if spec.no_speech is not None:
        # After the token that starts a transcript, which is the first of every prompt.
        at_start = run.prompt_logits[:, 0]
        no_speech = np.exp(at_start[:, spec.no_speech] - log_sum_exp(at_start))
    return [
        Decoded(tuple(tokens), float(total) / max(int(count), 1), float(silence))
        for tokens, total, count, silence in zip(heard, sums, counts, no_speech, strict=True)
    ]


def _drawn(scores: Scores, temperature: float, draw: np.random.Generator) -> int:
    # In float64: the generator wants a sum of one to more digits than float32 has.
    weights = np.exp((scores - scores.max()) / temperature, dtype=np.float64)
    return int(draw.choice(len(weights), p=weights / weights.sum()))
