from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechquant.calibrators.balance import Quantizer
from speechquant.calibrators.channels import Window, collect_ranges
from speechquant.calibrators.histogram import Extent
from speechquant.calibrators.product_clip import (
    SHARES,
    NormOverTime,
    ReadAs,
    least_error_extent,
)
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits


def test_windows_are_what_a_convolution_reads() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 6, 40)).astype(np.float32)
    weight = rng.standard_normal((8, 3, 5)).astype(np.float32)
    given = torch.from_numpy(values), torch.from_numpy(weight)
    expected = torch.nn.functional.conv1d(*given, stride=2, groups=2)[0].numpy()
    rows = Window(steps=5, stride=2).rows_of(values, 100, np.random.default_rng(1))
    assert rows.shape == (18, 6 * 5)
    by_group = weight.reshape(2, 4, 15).transpose(0, 2, 1)
    halves = rows.reshape(18, 2, 15)
    found = np.concatenate([halves[:, group] @ by_group[group] for group in range(2)], axis=1)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected.T, axis=0), atol=1e-5)


def test_a_clip_shorter_than_a_window_gives_one_with_silence_behind() -> None:
    values = np.ones((1, 2, 3), np.float32)
    rows = Window(steps=5, stride=2).rows_of(values, 4, np.random.default_rng(0))
    assert rows.tolist() == [[1, 1, 1, 0, 0, 1, 1, 1, 0, 0]]


def test_ranges_beside_windows_are_those_of_all_values() -> None:
    clips = [LabelledClip(Path(f"{index}.wav"), None) for index in range(4)]
    drawn = {
        clip: np.random.default_rng(n).normal(size=(1, 2, 900)) for n, clip in enumerate(clips)
    }
    found = collect_ranges(
        lambda clip: {"x": drawn[clip].astype(np.float32)},
        {"x": 1},
        clips,
        windows={"x": Window(3, 2)},
    )["x"]
    every = np.concatenate([values[0] for values in drawn.values()], axis=1).astype(np.float32)
    np.testing.assert_array_equal(found.lowest, every.min(axis=1))
    np.testing.assert_array_equal(found.highest, every.max(axis=1))
    assert found.rows.shape == (512, 6)


def test_wide_windows_are_fewer() -> None:
    clips = [LabelledClip(Path(f"{index}.wav"), None) for index in range(2)]
    values = np.ones((1, 2**11, 200), np.float32)
    found = collect_ranges(lambda _: {"x": values}, {"x": 1}, clips, windows={"x": Window(128, 1)})
    assert found["x"].rows.shape == (64, 2**18)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_is_the_best_of_plain_loops(bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(bits)
    rows = rng.standard_t(2, (50, 8)).astype(np.float32)
    weight = rng.standard_normal((2, 4, 3)).astype(np.float32)
    extent = Extent(float(rows.min()), float(rows.max()))
    quantizer = Quantizer(Bits(bits, bits), symmetric=symmetric)
    found = least_error_extent(rows, weight, extent, quantizer)
    least, best = np.inf, extent
    highest = 2 ** (bits - 1) - 1
    rounded = np.empty_like(weight)
    for group in range(2):
        for output in range(3):
            column = weight[group, :, output]
            scale = np.abs(column).max() / highest
            rounded[group, :, output] = np.rint(column / scale) * scale
    tried = []
    for share in SHARES:
        limit = share * max(-extent.minimum, extent.maximum)
        low, high = max(extent.minimum, -limit), min(extent.maximum, limit)
        tried.append((low, high))
        if not symmetric:
            scale = (high - low) / (2**bits - 1)
            below = -(round(-low / scale) + 1) * scale
            tried.append((below, below + (2**bits - 1) * scale))
    for low, high in tried:
        if symmetric:
            scale, zero, reach = max(-low, high) / highest, 0, (-highest, highest)
        else:
            scale = (high - low) / (2**bits - 1)
            zero, reach = round(-low / scale), (0, 2**bits - 1)
        levels = np.clip(np.rint(rows / scale) + zero, *reach) - zero
        total = 0.0
        for row, level in zip(rows, levels, strict=True):
            parts = [
                (row[4 * g : 4 * g + 4] @ weight[g], level[4 * g : 4 * g + 4] * scale @ rounded[g])
                for g in range(2)
            ]
            expected, given = (np.concatenate(side) for side in zip(*parts, strict=True))
            total += np.square(given - expected).sum() / np.square(expected).sum()
        if total < least * (1 - 1e-6):
            least, best = total, Extent(low, high)
    assert found == pytest.approx(best)
    if bits == 4:
        assert found.amax < extent.amax


def test_one_enormous_value_in_thousands_is_cut_off_and_a_filled_range_is_not() -> None:
    rng = np.random.default_rng(0)
    filled = rng.uniform(-1, 1, (500, 16)).astype(np.float32)
    weight = rng.standard_normal((1, 16, 8)).astype(np.float32)
    quantizer = Quantizer(Bits(6, 6), symmetric=True)
    assert least_error_extent(filled, weight, Extent(-1.0, 1.0), quantizer).amax >= 0.9
    peaked = filled.copy()
    peaked[7, 3] = 30.0
    assert least_error_extent(peaked, weight, Extent(-1.0, 30.0), quantizer).amax <= 2.4


def test_what_gelu_gives_below_zero_keeps_a_level_where_levels_are_wide() -> None:
    rng = np.random.default_rng(0)
    rows = np.full((500, 16), -0.15, np.float32)
    is_loud = rng.random((500, 16)) < 0.2
    rows[is_loud] = rng.uniform(0, 12, int(is_loud.sum()))
    weight = rng.uniform(0, 1, (1, 16, 8)).astype(np.float32)
    quantizer = Quantizer(Bits(5, 5), symmetric=False)
    whole = Extent(-0.15, 12.0)
    assert quantizer.scale_of("", whole).zero_point == 0
    found = quantizer.scale_of("", least_error_extent(rows, weight, whole, quantizer))
    assert found.zero_point >= 1


def test_frames_quieter_than_the_bias_do_not_cut_off_loud_ones() -> None:
    rng = np.random.default_rng(0)
    quiet = 0.01 * rng.standard_normal((400, 16))
    rows = np.concatenate([quiet, 2 * rng.standard_normal((100, 16))]).astype(np.float32)
    weight = rng.standard_normal((1, 16, 8)).astype(np.float32)
    extent, quantizer = Extent(float(rows.min()), float(rows.max())), Quantizer(symmetric=True)
    cut = least_error_extent(rows, weight, extent, quantizer)
    whole = least_error_extent(rows, weight, extent, quantizer, ReadAs(np.full(8, 3.0, np.float32)))
    assert cut.amax < 0.2 * extent.amax
    assert whole.amax > 0.6 * extent.amax


def test_a_norm_over_time_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    rows, gain, offset = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((50, 3), 3, 3)
    )
    found = ReadAs(1.5, NormOverTime(gain, offset, 1e-5)).of(rows)
    given = torch.from_numpy(rows.T[None] + 1.5)
    learnt = torch.from_numpy(gain), torch.from_numpy(offset)
    expected = torch.nn.functional.group_norm(given, 3, *learnt, eps=1e-5)[0].numpy().T
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What is small for the norm's offset does not count either.
    quiet = np.concatenate(
        [0.01 * rng.standard_normal((400, 16)), 2 * rng.standard_normal((9, 16))]
    )
    quiet = quiet.astype(np.float32)
    weight = rng.standard_normal((1, 16, 8)).astype(np.float32)
    extent, quantizer = Extent(float(quiet.min()), float(quiet.max())), Quantizer(symmetric=True)
    norm = NormOverTime(np.ones(8, np.float32), np.full(8, 2.0, np.float32), 1e-5)
    normed = least_error_extent(quiet, weight, extent, quantizer, ReadAs(norm=norm))
    assert normed.amax > least_error_extent(quiet, weight, extent, quantizer).amax
