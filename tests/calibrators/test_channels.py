from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators.channels import PEAK_ROWS, SAMPLED_ROWS, collect_ranges, ranges_of
from speechquant.core.errors import CalibrationError
from speechquant.core.manifests import LabelledClip

CLIPS = [LabelledClip(Path(f"{index}.wav"), None) for index in range(4)]


def values_of(clip: LabelledClip) -> Mapping[str, NDArray[Any]]:
    rng = np.random.default_rng(int(clip.path.stem))
    return {
        "rows": rng.normal(size=(1, 300, 3)).astype(np.float32),
        "frames": rng.normal(size=(1, 2, 300)).astype(np.float32),
    }


def test_ranges_of_channels_are_those_of_all_values() -> None:
    found = collect_ranges(values_of, {"rows": -1, "frames": 1}, CLIPS)
    rows = np.concatenate([values_of(clip)["rows"][0] for clip in CLIPS])
    frames = np.concatenate([values_of(clip)["frames"][0].T for clip in CLIPS])
    np.testing.assert_array_equal(found["rows"].lowest, rows.min(axis=0))
    np.testing.assert_array_equal(found["frames"].highest, frames.max(axis=0))
    assert found["rows"].extent == (rows.min(), rows.max())


def test_as_many_rows_are_kept_as_asked_for_over_all_clips() -> None:
    found = collect_ranges(values_of, {"rows": -1}, CLIPS)
    assert found["rows"].rows.shape == (SAMPLED_ROWS + PEAK_ROWS, 3)


def test_the_rows_with_the_largest_values_are_among_those_kept() -> None:
    values = np.zeros((50, 2), np.float32)
    values[31] = 7, -9
    assert [7, -9] in ranges_of(values, -1, rows=1, peaks=1, seed=0).rows.tolist()


def test_what_was_collected_is_not_collected_again(tmp_path: Path) -> None:
    saved = tmp_path / "channels.npz"
    first = collect_ranges(values_of, {"rows": -1}, CLIPS, saved)

    def never(clip: LabelledClip) -> Mapping[str, NDArray[Any]]:
        raise AssertionError(clip)

    second = collect_ranges(never, {"rows": -1}, CLIPS, saved)
    np.testing.assert_array_equal(first["rows"].rows, second["rows"].rows)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_spoiled_file_is_named(tmp_path: Path, content: bytes) -> None:
    saved = tmp_path / "channels.npz"
    saved.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"channels\.npz.*delete it"):
        collect_ranges(values_of, {"rows": -1}, CLIPS, saved)


def test_an_activation_that_is_not_finite_is_named() -> None:
    with pytest.raises(CalibrationError, match="rows: an activation holds NaN"):
        collect_ranges(
            lambda _: {"rows": np.full((1, 2, 2), np.nan, np.float32)}, {"rows": -1}, CLIPS
        )


def test_no_clips_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no utterances"):
        collect_ranges(values_of, {"rows": -1}, [])
