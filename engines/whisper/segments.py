"""How the tokens of one chunk are cut at their timestamps, and where the next chunk begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FRAMES_PER_POSITION = 2  # the encoder's second convolution halves the frames


@dataclass(frozen=True)
class TimedTokens:
    """Text tokens of a chunk, said between two positions of the encoder, counted in the chunk."""

    tokens: tuple[int, ...]
    start: int
    end: int


def cut_at_timestamps(
    tokens: Sequence[int], first_timestamp: int, frames: int
) -> tuple[list[TimedTokens], int]:
    """Return the segments in a chunk of `frames` and how many of its frames they use up.

    Where the last segment has no end of its own, the chunk was cut in the middle of it: it is left
    out, and the next chunk begins at its start.
    """
    is_time = [token >= first_timestamp for token in tokens]
    ends_with_one = is_time[-2:] == [False, True]
    cuts = [index for index in range(1, len(tokens)) if is_time[index - 1] and is_time[index]]
    if not cuts:
        return [_whole_chunk(tokens, first_timestamp, frames)], frames
    if ends_with_one:
        cuts.append(len(tokens))
    pieces = [tokens[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]
    segments = [_between_timestamps(piece, first_timestamp) for piece in pieces]
    # A lone timestamp at the end says that nothing is said after it.
    used = frames if ends_with_one else FRAMES_PER_POSITION * segments[-1].end
    return segments, used if used > 0 else frames


def untold_start(tokens: Sequence[int], first_timestamp: int) -> int:
    """Return the position at which something begins of which nothing is told, 0 where nothing does.

    The chunk was cut in the middle of it, and it may be speech as long as a chunk.
    """
    return tokens[0] - first_timestamp if len(tokens) == 1 and tokens[0] >= first_timestamp else 0


def _between_timestamps(piece: Sequence[int], first: int) -> TimedTokens:
    text = tuple(token for token in piece if token < first)
    return TimedTokens(text, piece[0] - first, piece[-1] - first)


def _whole_chunk(tokens: Sequence[int], first: int, frames: int) -> TimedTokens:
    times = [token - first for token in tokens if token >= first]
    text = tuple(token for token in tokens if token < first)
    is_told = bool(times) and times[-1] > 0
    return TimedTokens(text, 0, times[-1] if is_told else frames // FRAMES_PER_POSITION)
