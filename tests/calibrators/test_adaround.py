"""Adaptive rounding against every possible rounding, and Grams against plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators import adaround
from speechquant.calibrators.adaround import (
    AdaRoundSettings,
    ConvWindow,
    as_matrices,
    from_matrices,
    new_gram,
    round_adaptively,
)
from speechquant.core.errors import CalibrationError, OptionError

FEW = AdaRoundSettings(steps=300)


def correlated_gram(inputs: int, seed: int, shared: float = 3.0) -> NDArray[np.float64]:
    """Inputs that are noise plus a few common sources, and not of one size."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(500, inputs)) + shared * (
        random.normal(size=(500, 2)) @ random.normal(size=(2, inputs))
    )
    x *= random.uniform(0.3, 3, size=inputs)
    return x.T @ x / len(x)


def layer(
    outputs: int, inputs: int, bits: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weight = np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)
    return weight, (np.abs(weight).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)


def losses(
    weight: NDArray[Any], scales: NDArray[Any], levels: NDArray[Any], gram: NDArray[np.float64]
) -> NDArray[np.float64]:
    errors = weight.astype(np.float64) - scales.astype(np.float64)[:, None] * levels
    return np.array([row @ gram @ row for row in errors])


def nearest(weight: NDArray[Any], scales: NDArray[Any], bits: int) -> NDArray[np.float64]:
    largest = 2 ** (bits - 1) - 1
    return np.clip(
        np.rint(weight.astype(np.float64) / scales.astype(np.float64)[:, None]), -largest, largest
    )


def test_two_inputs_that_always_agree_round_against_each_other() -> None:
    # 2.4 + 2.4 of one signal: nearest gives 2 + 2 and is 0.8 off, 2 + 3 is 0.2 off.
    weight = np.array([[2.4, 2.45, 7.0]], np.float32)
    gram = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    levels = round_adaptively(weight, np.ones(1, np.float32), gram, 4)
    assert sorted(levels[0, :2]) == [2, 3]
    assert levels[0, 2] == 7


def test_error_is_close_to_the_least_of_all_roundings() -> None:
    ratios = []
    for seed in range(20):
        weight, scales = layer(1, 10, 4, seed)
        gram = correlated_gram(10, seed, shared=1)
        floor = np.floor(weight.astype(np.float64) / scales.astype(np.float64)[:, None])[0]
        every = np.clip([floor + up for up in itertools.product((0, 1), repeat=10)], -7, 7)
        least = min(losses(weight, scales, levels[None], gram)[0] for levels in every)
        learned = losses(weight, scales, round_adaptively(weight, scales, gram, 4), gram)[0]
        rounded = losses(weight, scales, nearest(weight, scales, 4), gram)[0]
        ratios.append((learned / least, rounded / least))
    learned_ratios, nearest_ratios = np.array(ratios).T
    assert learned_ratios.min() > 1 - 1e-9
    assert learned_ratios.max() < 2.1
    assert learned_ratios.mean() < 1.3 < 1.6 < nearest_ratios.mean()


@pytest.mark.parametrize("bits", [4, 8])
def test_no_channel_is_worse_than_nearest_and_the_layer_is_much_better(bits: int) -> None:
    weight, scales = layer(24, 64, bits, 1)
    gram = correlated_gram(64, 2)
    learned = losses(weight, scales, round_adaptively(weight, scales, gram, bits), gram)
    rounded = losses(weight, scales, nearest(weight, scales, bits), gram)
    assert (learned <= rounded).all()
    assert learned.sum() < 0.3 * rounded.sum()


def test_rounding_that_learned_nothing_is_rounding_to_nearest() -> None:
    weight, scales = layer(8, 16, 4, 3)
    # One step of a huge rate throws every weight to where its slope points, whatever the others do.
    wild = AdaRoundSettings(steps=1, learning_rate=50.0)
    gram = np.eye(16)  # of independent inputs nearest is the best rounding
    assert (
        round_adaptively(weight, scales, gram, 4, settings=wild) == nearest(weight, scales, 4)
    ).all()


@pytest.mark.parametrize(("bits", "dtype"), [(4, np.int8), (8, np.int8), (9, np.int16)])
def test_levels_are_neighbours_of_the_weight_and_in_range(bits: int, dtype: type) -> None:
    weight, scales = layer(6, 20, bits, 4)
    levels = round_adaptively(weight, scales, correlated_gram(20, 5), bits, settings=FEW)
    exact = weight.astype(np.float64) / scales.astype(np.float64)[:, None]
    assert levels.dtype == dtype
    assert np.abs(levels - exact).max() < 1
    assert np.abs(levels).max() == 2 ** (bits - 1) - 1


def test_weights_beyond_the_largest_level_are_clamped() -> None:
    weight = np.array([[9.6, -9.6, 0.4, 7.5, -7.5]], np.float32)
    levels = round_adaptively(weight, np.ones(1), correlated_gram(5, 1), 4, settings=FEW)
    assert levels[0, [0, 1, 3, 4]].tolist() == [7, -7, 7, -7]
    assert levels[0, 2] in (0, 1)


def test_the_others_make_up_for_a_weight_that_is_clamped() -> None:
    # One signal times 17.66. Clamped and rounded to nearest it gets 7 + 4 * 2 = 15, at best 18.
    weight = np.array([[8.4, 2.3, 2.31, 2.32, 2.33]], np.float32)
    levels = round_adaptively(weight, np.ones(1), np.ones((5, 5)), 4)
    assert levels[0, 0] == 7
    assert levels.sum() == 18


def test_channels_do_not_depend_on_each_other_nor_on_their_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, scales = layer(5, 12, 4, 6)
    gram = correlated_gram(12, 6)
    together = round_adaptively(weight, scales, gram, 4)
    assert (together == round_adaptively(weight, scales, gram, 4)).all()
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(adaround, "CHANNELS_AT_ONCE", 2)
    blocks = round_adaptively(
        weight, scales, gram, 4, on_step=lambda done, total: steps.append((done, total))
    )
    assert (blocks == together).all()
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_arguments_are_left_alone_and_an_unheard_layer_is_rounded_to_nearest() -> None:
    weight, scales = layer(3, 4, 4, 7)
    before = weight.copy(), scales.copy()
    levels = round_adaptively(weight, scales, np.zeros((4, 4)), 4)
    assert (levels == nearest(weight, scales, 4)).all()
    assert (weight == before[0]).all()
    assert (scales == before[1]).all()


def test_the_exponent_is_off_then_falls_from_20_to_2() -> None:
    settings = AdaRoundSettings(steps=101)
    # 0.2 * 101 = 20.2: the steps 0..20 have none, and half way to step 100 lies 60.1.
    assert settings.beta(20) is None
    assert settings.beta(60) == pytest.approx(20 - 18 * (60 - 20.2) / (100 - 20.2))
    assert settings.beta(100) == pytest.approx(2)


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"learning_rate": 0.0}, {"pull": 0.0}, {"warm_up": 1.0}, {"last_beta": 1.0}],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(bad))):
        AdaRoundSettings(**bad)


def test_layers_that_cannot_be_rounded_are_refused() -> None:
    weight, scales = layer(3, 4, 4, 8)
    with pytest.raises(CalibrationError, match="not of one layer"):
        round_adaptively(weight, scales, np.eye(5), 4)
    with pytest.raises(CalibrationError, match="not finite"):
        round_adaptively(weight, scales, np.full((4, 4), np.nan), 4)
    with pytest.raises(CalibrationError, match="above zero"):
        round_adaptively(weight, np.zeros(3), np.eye(4), 4)


def test_gram_of_a_matrix_product_is_the_mean_over_all_positions_of_all_utterances() -> None:
    random = np.random.default_rng(9)
    clips = [random.normal(size=(1, frames, 5)).astype(np.float32) for frames in (3, 8)]
    gram = new_gram(5)
    assert gram is not None
    for clip in clips:
        gram.add(clip)
    rows = np.concatenate([clip[0] for clip in clips]).astype(np.float64)
    expected = sum(np.outer(row, row) for row in rows) / 11
    np.testing.assert_allclose(gram.mean(), expected[None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 50, 10**6])
@pytest.mark.parametrize(
    ("window", "groups"),
    [
        (ConvWindow(3), 1),
        (ConvWindow(3, stride=2, padding=(1, 2), dilation=2), 1),
        (ConvWindow(4, padding=(2, 1)), 3),
    ],
)
def test_gram_predicts_the_output_error_of_a_convolution_written_as_loops(
    window: ConvWindow, groups: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaround, "MAX_BLOCK_VALUES", block)
    random = np.random.default_rng(10)
    x = random.normal(size=(2, 6, 15)).astype(np.float32)
    error = random.normal(size=(9, 6 // groups, window.kernel)).astype(np.float32)
    gram = new_gram(6, groups=groups, window=window)
    assert gram is not None
    gram.add(x)
    outputs = looped_convolution(x, error, window, groups)
    expected = (outputs**2).mean(axis=(0, 2))  # of each output channel
    predicted = [
        adaround.output_errors(matrix.astype(np.float64), group_gram)
        for matrix, group_gram in zip(
            as_matrices(error, "Conv", groups=groups), gram.mean(), strict=True
        )
    ]
    np.testing.assert_allclose(np.concatenate(predicted), expected, rtol=1e-5)


def looped_convolution(
    x: NDArray[np.float32], weight: NDArray[np.float32], window: ConvWindow, groups: int
) -> NDArray[np.float64]:
    batch, channels, time = x.shape
    before, after = window.padding
    frames = (
        time + before + after - (window.kernel - 1) * window.dilation - 1
    ) // window.stride + 1
    outputs = np.zeros((batch, len(weight), frames))
    per_group_in, per_group_out = channels // groups, len(weight) // groups
    for clip, out, frame, channel, tap in itertools.product(
        range(batch), range(len(weight)), range(frames), range(per_group_in), range(window.kernel)
    ):
        at = frame * window.stride + tap * window.dilation - before
        if 0 <= at < time:
            source = out // per_group_out * per_group_in + channel
            outputs[clip, out, frame] += float(weight[out, channel, tap]) * float(
                x[clip, source, at]
            )
    return outputs


def test_gram_beyond_its_memory_is_none() -> None:
    # wav2vec2-base: 48 channels a group * 128 samples = 6,144 inputs, 16 groups, 4.5 GiB.
    assert new_gram(768, groups=16, window=ConvWindow(128)) is None
    assert new_gram(256, groups=16, window=ConvWindow(16)) is not None


def test_gram_refuses_another_layers_activation_and_no_data() -> None:
    gram = new_gram(4)
    assert gram is not None
    with pytest.raises(CalibrationError, match="4 channels"):
        gram.add(np.zeros((2, 5), np.float32))
    with pytest.raises(CalibrationError, match="at least one utterance"):
        gram.mean()


def test_matrices_of_a_weight_and_back() -> None:
    conv = np.arange(4 * 3 * 2).reshape(4, 3, 2)
    matrices = as_matrices(conv, "Conv", groups=2)
    assert matrices.shape == (2, 2, 6)
    assert matrices[1, 0].tolist() == [12, 13, 14, 15, 16, 17]
    assert (from_matrices(matrices, "Conv", conv.shape) == conv).all()

    product = np.arange(6).reshape(2, 3)  # 2 inputs, 3 outputs
    matrices = as_matrices(product, "MatMul")
    assert matrices.tolist() == [[[0, 3], [1, 4], [2, 5]]]
    assert (from_matrices(matrices, "MatMul", product.shape) == product).all()

    matrices = as_matrices(product, "Gemm", transposed=True)
    assert matrices.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert (from_matrices(matrices, "Gemm", product.shape, transposed=True) == product).all()
