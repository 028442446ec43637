"""What becomes of clips that are strung together: whether one is lost or told twice at a seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Seams:
    """The word error rates clip by clip and strung together, and what was lost or told twice."""

    alone: float
    joined: float
    lost_clips: int
    repeated_words: int

    @property
    def rates(self) -> tuple[str, str, str]:
        """Both rates and their difference, as tables show them."""
        alone, joined = 100 * self.alone, 100 * self.joined
        return f"{alone:.2f} %", f"{joined:.2f} %", f"{joined - alone:+.2f}"


def lost_and_repeated(clips: Sequence[str], heard: str) -> tuple[int, int]:
    """Return how many of the clips are missing from `heard`, and the words told twice in it.

    A clip is missing where none of its words is there, right or wrong. Told twice are words that
    nobody said and that are those before or after them again.
    """
    import jiwer

    words, starts = heard.split(), [0, *accumulate(len(clip.split()) for clip in clips)]
    output = jiwer.process_words(" ".join(clips), heard)
    missed: set[int] = set()
    repeated = 0
    for chunk in output.alignments[0]:
        first, last = chunk.hyp_start_idx, chunk.hyp_end_idx
        if chunk.type == "delete":
            missed.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
        elif chunk.type == "insert":
            count, added = last - first, words[first:last]
            before, after = words[max(first - count, 0) : first], words[last : last + count]
            repeated += count * (added in (before, after))
    lost = sum(
        start < end and missed.issuperset(range(start, end)) for start, end in pairwise(starts)
    )
    return lost, repeated
