from __future__ import annotations

import numpy as np
import pytest

from speechquant.engines.whisper.segments import TimedTokens, cut_at_timestamps, untold_start

FIRST = 100  # tokens below are text


def at(position: int) -> int:
    return FIRST + position


@pytest.mark.parametrize(
    ("tokens", "segments", "used"),
    [
        # Two segments, and nothing said after the second.
        (
            [at(0), 1, 2, at(30), at(35), 3, at(60)],
            [TimedTokens((1, 2), 0, 30), TimedTokens((3,), 35, 60)],
            200,
        ),
        # The second is cut off by the chunk's end: the next chunk begins where the first ended.
        ([at(0), 1, 2, at(30), at(35), 3], [TimedTokens((1, 2), 0, 30)], 60),
        ([at(0), 1, at(30), at(30)], [TimedTokens((1,), 0, 30)], 60),
        # One segment that ends in the chunk, and one that does not.
        ([at(2), 1, 2, at(30)], [TimedTokens((1, 2), 0, 30)], 200),
        ([at(2), 1, 2], [TimedTokens((1, 2), 0, 2)], 200),
        ([at(0), 1, 2], [TimedTokens((1, 2), 0, 100)], 200),
        ([], [TimedTokens((), 0, 100)], 200),
    ],
)
def test_worked_examples(tokens: list[int], segments: list[TimedTokens], used: int) -> None:
    assert cut_at_timestamps(tokens, FIRST, 200) == (segments, used)


def test_a_chunk_is_never_decoded_for_ever() -> None:
    _, used = cut_at_timestamps([at(0), 1, at(0), at(0)], FIRST, 200)
    assert used == 200


@pytest.mark.parametrize(
    ("tokens", "start"),
    [([at(25)], 25), ([at(0)], 0), ([], 0), ([1], 0), ([at(25), 1], 0), ([at(25), at(25)], 0)],
)
def test_where_something_begins_of_which_nothing_is_told(tokens: list[int], start: int) -> None:
    assert untold_start(tokens, FIRST) == start


def test_as_transformers_cuts() -> None:
    import torch
    from transformers import WhisperForConditionalGeneration

    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens: list[int] = []
        time = 0
        for _ in range(rng.integers(1, 4)):
            time += int(rng.integers(0, 4))
            tokens += [at(time), *rng.integers(0, 50, rng.integers(1, 4)).tolist()]
            time += int(rng.integers(1, 20))
            tokens.append(at(time))
        tokens = tokens[: rng.integers(1, len(tokens) + 1)]
        frames = int(rng.integers(100, 200))
        segments, offset = WhisperForConditionalGeneration._retrieve_segment(
            seek_sequence=torch.tensor(tokens),
            seek_outputs=[{}],
            time_offset=torch.zeros(1, dtype=torch.float64),
            timestamp_begin=FIRST,
            seek_num_frames=torch.tensor([frames]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 1),
        )
        found, used = cut_at_timestamps(tokens, FIRST, frames)
        assert used == int(offset)
        expected = [
            (
                tuple(token for token in segment["tokens"].tolist() if token < FIRST),
                round(float(segment["start"]) / 0.02),
                round(float(segment["end"]) / 0.02),
            )
            for segment in segments
        ]
        assert [(piece.tokens, piece.start, piece.end) for piece in found] == expected
