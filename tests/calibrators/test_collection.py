from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators import collection
from speechquant.calibrators.collection import collect, one_by_one, part_of
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.errors import CalibrationError
from speechquant.core.manifests import LabelledClip

CLIPS = [LabelledClip(Path(f"{number}.wav"), None) for number in range(23)]


def activations_of(clip: LabelledClip) -> Mapping[str, NDArray[Any]]:
    """Louder from clip to clip, so that the histograms widen on the way."""
    number = int(clip.path.stem)
    rng = np.random.default_rng(number)
    return {
        name: (rng.standard_normal((1, 40 + number, 3)) * 1.5**number).astype(np.float32)
        for name in ("x", "y")
    }


class Killed(BaseException):
    pass


def killed_at(number: int) -> Callable[[LabelledClip], Mapping[str, NDArray[Any]]]:
    def activations(clip: LabelledClip) -> Mapping[str, NDArray[Any]]:
        if int(clip.path.stem) == number:
            raise Killed
        return activations_of(clip)

    return activations


def assert_equal(found: ActivationStatistics, expected: ActivationStatistics) -> None:
    assert list(found.tensors) == list(expected.tensors)
    for name, statistics in expected.tensors.items():
        arrays = found.tensors[name].to_arrays()
        for key, array in statistics.to_arrays().items():
            np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize("save_every_seconds", [-1.0, 1e9])
def test_killed_and_resumed_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every_seconds: float
) -> None:
    monkeypatch.setattr(collection, "_SAVE_EVERY_SECONDS", save_every_seconds)
    saved = tmp_path / "statistics.npz"
    asked: list[str] = []
    for number in (0, 1, 9, 9, 22):
        with pytest.raises(Killed):
            collect(one_by_one(killed_at(number), CLIPS), len(CLIPS), saved)
        # What was counted is kept where there was time to save it.
        assert saved.is_file() == (number > 0 and save_every_seconds < 0)
        if saved.is_file():
            assert ActivationStatistics.load(saved).utterances == number

    def recorded(clip: LabelledClip) -> Mapping[str, NDArray[Any]]:
        asked.append(clip.path.stem)
        return activations_of(clip)

    resumed = collect(one_by_one(recorded, CLIPS), len(CLIPS), saved)
    assert asked == (["22"] if save_every_seconds < 0 else [clip.path.stem for clip in CLIPS])
    whole = collect(one_by_one(activations_of, CLIPS), len(CLIPS))
    assert_equal(resumed, whole)
    assert_equal(ActivationStatistics.load(saved), whole)
    # Done is done: nothing is asked again.
    assert_equal(collect(one_by_one(killed_at(0), CLIPS), len(CLIPS), saved), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.npz"]


def test_steps_are_counted(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    collect(
        one_by_one(activations_of, CLIPS),
        len(CLIPS),
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(number, 23) for number in range(1, 24)]


def test_what_was_counted_is_what_was_seen() -> None:
    statistics = collect(one_by_one(activations_of, CLIPS), len(CLIPS))
    values = np.concatenate([activations_of(clip)["x"].reshape(-1) for clip in CLIPS])
    histogram = statistics.tensors["x"].histogram
    assert histogram.total == values.size
    assert histogram.amax == float(np.abs(values).max())


def test_an_activation_that_is_not_finite_is_named() -> None:
    def broken(clip: LabelledClip) -> Mapping[str, NDArray[Any]]:
        values = dict(activations_of(clip))
        values["y"] = np.full((1, 3), np.nan, np.float32)
        return values

    with pytest.raises(CalibrationError, match="y: an activation holds NaN"):
        collect(one_by_one(broken, CLIPS), len(CLIPS))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    saved = tmp_path / "statistics.npz"
    collect(one_by_one(activations_of, CLIPS), len(CLIPS), saved)
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(CalibrationError, match=r"statistics\.npz: not statistics .* delete it"):
        collect(one_by_one(activations_of, CLIPS), len(CLIPS), saved)


def test_no_clips() -> None:
    with pytest.raises(CalibrationError, match="no utterances to calibrate on"):
        collect(one_by_one(activations_of, []), 0)


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_any_size_in_any_order_come_to_the_same(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def parts_of(missing: Sequence[int]) -> Iterator[ActivationStatistics]:
        shuffled = rng.permutation(missing).tolist()
        while shuffled:
            taken = [shuffled.pop() for _ in range(min(len(shuffled), int(rng.integers(1, 5))))]
            yield part_of(activations_of, CLIPS, taken)

    saved = tmp_path / "statistics.npz"
    with pytest.raises(Killed):
        collect(lambda missing: killed_after(9, parts_of(missing)), len(CLIPS), saved)
    resumed = collect(parts_of, len(CLIPS), saved)
    assert_equal(resumed, collect(one_by_one(activations_of, CLIPS), len(CLIPS)))


def killed_after(parts: int, of: Iterator[ActivationStatistics]) -> Iterator[ActivationStatistics]:
    yield from itertools.islice(of, parts)
    raise Killed
