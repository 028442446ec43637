from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators.histogram import Extent
from speechquant.calibrators.statistics import ActivationStatistics, TensorStatistics
from speechquant.core.errors import CalibrationError
from speechquant.core.files import new_file

Activations = dict[str, NDArray[np.float32]]


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def utterance(number: int) -> Activations:
    random = np.random.default_rng(number)
    frames = 10 + number
    return {
        "conv.0.input": random.standard_normal((1, frames, 4), np.float32) * np.float32(number + 1),
        "head.input": np.maximum(random.standard_normal((1, frames), np.float32), 0),
    }


def assert_same(found: ActivationStatistics, expected: ActivationStatistics) -> None:
    assert found.utterances == expected.utterances
    assert found.total_utterances == expected.total_utterances
    assert list(found.tensors) == list(expected.tensors)
    for name, statistics in expected.tensors.items():
        for key, array in statistics.to_arrays().items():
            np.testing.assert_array_equal(found.tensors[name].to_arrays()[key], array)


def test_first_batch_is_copied_and_the_others_averaged() -> None:
    statistics = TensorStatistics()
    assert statistics.averaged_extent is None
    statistics.add(f32(-1, 2), 0)
    statistics.add(f32(-0.5, 4), 0)
    assert statistics.averaged_extent == Extent(-1.0, 4.0)
    statistics.add(f32(1, 14), 1)
    assert statistics.averaged_extent == pytest.approx((0.9 * -1 + 0.1 * 1, 0.9 * 4 + 0.1 * 14))
    statistics.add(f32(0, 0), 2)
    assert statistics.averaged_extent == pytest.approx((-0.72, 4.5))
    assert statistics.histogram.extent == Extent(-1.0, 14.0)


def test_batches_are_averaged_in_their_order_whenever_they_came() -> None:
    ordered, late = TensorStatistics(), TensorStatistics()
    for batch in range(16):
        ordered.add(f32(-batch, 2 * batch), batch)
        late.add(f32(batch - 15, 2 * (15 - batch)), 15 - batch)
    average = 0.0
    for batch in range(1, 16):
        average = 0.9 * average + 0.1 * batch
    assert ordered.averaged_extent == pytest.approx((-average, 2 * average))
    assert late.averaged_extent == ordered.averaged_extent


@pytest.mark.parametrize("total", [1, 2, 15, 16, 17, 20, 33, 200])
def test_as_many_batches_as_the_set_allows(total: int) -> None:
    statistics = ActivationStatistics(total)
    # Every utterance reaches 1, the first batch alone 2: what is left of it tells the batches.
    for place in range(total):
        statistics.add_utterance({"x": np.array([0.0, 2.0 if place == 0 else 1.0], np.float32)})
    extent = statistics.tensors["x"].averaged_extent
    assert extent is not None
    assert extent.maximum == pytest.approx(1 + 0.9 ** (min(total, 16) - 1))


def test_batches_are_cut_from_the_utterances() -> None:
    # 24 utterances in 16 batches: by turns one and two.
    statistics = ActivationStatistics(24)
    for number in range(24):
        statistics.add_utterance({"x": f32(-number, number)})
    last_of_batch = [number for number in range(24) if number % 3 != 0]
    average = float(last_of_batch[0])
    for maximum in last_of_batch[1:]:
        average = 0.9 * average + 0.1 * maximum
    assert len(last_of_batch) == 16
    assert statistics.tensors["x"].averaged_extent == pytest.approx((-average, average))
    assert statistics.utterances == 24


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 39])
def test_a_run_that_was_stopped_comes_to_the_same(tmp_path: Path, stop: int) -> None:
    whole, interrupted = ActivationStatistics(39), ActivationStatistics(39)
    for number in range(stop):
        interrupted.add_utterance(utterance(number))
    with new_file(tmp_path / "statistics.npz") as partial:
        interrupted.save(partial)
    resumed = ActivationStatistics.load(tmp_path / "statistics.npz")
    assert_same(resumed, interrupted)
    for number in range(39):
        whole.add_utterance(utterance(number))
    for number in range(resumed.utterances, 39):
        resumed.add_utterance(utterance(number))
    assert_same(resumed, whole)


def test_histograms_count_every_value() -> None:
    statistics = ActivationStatistics(3)
    for number in range(3):
        statistics.add_utterance(utterance(number))
    head = np.concatenate([utterance(number)["head.input"].ravel() for number in range(3)])
    histogram = statistics.tensors["head.input"].histogram
    assert histogram.total == 10 + 11 + 12
    assert histogram.zeros == np.count_nonzero(head == 0)
    assert histogram.amax == head.max()


def test_an_utterance_that_is_refused_counts_for_no_tensor() -> None:
    statistics, expected = ActivationStatistics(2), ActivationStatistics(2)
    for each in (statistics, expected):
        each.add_utterance({"a": f32(1), "b": f32(2)})
    with pytest.raises(CalibrationError, match=r"^b: .*NaN"):
        statistics.add_utterance({"a": f32(8), "b": f32(float("nan"))})
    with pytest.raises(CalibrationError, match=r"^b: .*without values"):
        statistics.add_utterance({"a": f32(8), "b": f32()})
    with pytest.raises(CalibrationError, match="c is among"):
        statistics.add_utterance({"a": f32(8), "b": f32(8), "c": f32(8)})
    assert_same(statistics, expected)


def test_no_more_utterances_than_announced() -> None:
    statistics = ActivationStatistics(1)
    statistics.add_utterance({"a": f32(1)})
    with pytest.raises(CalibrationError, match="more utterances than the 1 announced"):
        statistics.add_utterance({"a": f32(1)})
    with pytest.raises(CalibrationError, match="no utterances"):
        ActivationStatistics(0)


def test_files_that_are_not_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    with pytest.raises(CalibrationError, match="no such statistics"):
        ActivationStatistics.load(path)
    statistics = ActivationStatistics(2)
    statistics.add_utterance(utterance(0))
    statistics.save(path)
    whole = path.read_bytes()
    with path.open("wb") as file:
        np.savez(file, format=np.array("another/1"))
    another = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, f32(1, 2))
    one_array = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], another, one_array):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match="calibrate again"):
            ActivationStatistics.load(path)


def test_what_was_counted_twice_or_of_another_set_is_refused() -> None:
    statistics, same = ActivationStatistics(3), ActivationStatistics(3)
    statistics.add_utterance({"a": f32(1)}, 1)
    same.add_utterance({"a": f32(1)}, 1)
    assert statistics.missing == [0, 2]
    with pytest.raises(CalibrationError, match="counted twice"):
        statistics.merge(same)
    with pytest.raises(CalibrationError, match="of 2 utterances beside those of 3"):
        statistics.merge(ActivationStatistics(2))
    other = ActivationStatistics(3)
    other.add_utterance({"b": f32(1)}, 0)
    with pytest.raises(CalibrationError, match="among the activations of some utterances only"):
        statistics.merge(other)
