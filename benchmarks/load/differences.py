"""Why a server's text of a clip is another one than that of the clip alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechquant.benchmarks.load.clients import Answered, SpokenClip
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.recognizers import Recognizer


@dataclass(frozen=True)
class Difference:
    """Another text of a clip, and how often it was answered.

    `batch` is the smallest in which the engine itself writes it, None where it does so in none:
    then the server is to blame.
    """

    clip: SpokenClip
    text: str
    count: int
    batch: int | None


def explained(
    answers: Sequence[Answered], clips: Sequence[SpokenClip], recognizer: Recognizer, most: int
) -> list[Difference]:
    """Return the differing texts among answers, each once, with where the engine writes them too.

    Each clip is heard in batches of up to `most` with those that are nearest to it in length.
    """
    counts: dict[tuple[SpokenClip, str], int] = {}
    for answer in answers:
        if answer.differs:
            counts[answer.clip, answer.text] = counts.get((answer.clip, answer.text), 0) + 1
    texts = {clip: _texts_by_batch(clip, clips, recognizer, most) for clip, _ in counts}
    return [
        Difference(clip, text, count, texts[clip].get(text))
        for (clip, text), count in counts.items()
    ]


def _texts_by_batch(
    clip: SpokenClip, clips: Sequence[SpokenClip], recognizer: Recognizer, most: int
) -> dict[str, int]:
    """Return what is written of a clip in batches, with the smallest batch that writes it."""
    nearest = sorted(clips, key=lambda one: (one is not clip, abs(one.seconds - clip.seconds)))
    found: dict[str, int] = {}
    for size in range(2, most + 1):
        # A small set of clips has fewer than a batch takes.
        together = [nearest[index % len(nearest)] for index in range(size)]
        hearings = [recognizer.begin(one.wave, DecodingOptions()) for one in together]
        while left := [one for one in hearings if not one.is_done]:
            recognizer.advance(left)
        found.setdefault(recognizer.heard(hearings[0]).text, size)
    return found
