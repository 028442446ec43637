from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from small_sets import RATE_HZ, SmallSet, assert_same, small_set, waves

from speechquant.core.audio import read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import AudioError, ManifestError

ROWS_OF_A_BATCH = 2


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def save(folder: Path, small: SmallSet, *shards: Sequence[int], text: str = "text") -> Path:
    """Write what `save_to_disk` of `datasets` does."""
    folder.mkdir(parents=True)
    names = [f"data-{index:05}-of-{len(shards):05}.arrow" for index in range(len(shards))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, chosen in zip(names, shards, strict=True):
        audio = [
            {"bytes": small.files[one].read_bytes(), "path": small.files[one].name}
            for one in chosen
        ]
        texts = [small.texts[one] for one in chosen]
        table = pa.table({"audio": pa.array(audio, kind), text: texts})
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as to,
        ):
            to.write_table(table, max_chunksize=ROWS_OF_A_BATCH)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_a_folder_has_the_clips_of_the_manifest(small: SmallSet, tmp_path: Path) -> None:
    folder = save(tmp_path / "set", small, [0, 1, 2], [3, 4])
    assert_same(folder, small)
    assert_same(folder / "data-00001-of-00002.arrow", small, [3, 4])
    clip = read_data_set(folder)[4]
    assert str(clip.audio) == f"{folder / 'data-00001-of-00002.arrow'}, row 1, clip4.wav"


def test_the_shards_are_in_the_order_of_the_description(small: SmallSet, tmp_path: Path) -> None:
    folder = save(tmp_path / "set", small, [0, 1, 2], [3, 4])
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert_same(folder, small, [3, 4, 0, 1, 2])


def test_a_file_for_random_access_is_read_too(small: SmallSet, tmp_path: Path) -> None:
    audio = [{"bytes": path.read_bytes(), "path": path.name} for path in small.files]
    table = pa.table({"audio": audio, "text": list(small.texts)})
    path = tmp_path / "set.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as to:
        to.write_table(table)
    assert_same(path, small)


def test_of_several_splits_one_is_named(small: SmallSet, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save(folder / "train", small, [0, 1, 2, 3, 4])
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert_same(folder, small)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        ManifestError, match=r"holds the splits train, test; name one, such as .*test"
    ):
        read_data_set(folder)
    assert_same(folder / "train", small)


def test_missing_columns(small: SmallSet, tmp_path: Path) -> None:
    folder = save(tmp_path / "set", small, [0, 1], text="words")
    with pytest.raises(ManifestError, match="no text column; its columns are audio, words; call"):
        read_data_set(folder)
    assert len(read_data_set(folder, require_text=False)) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"_data_files": 3}', '{"_data_files": [{}]}'])
def test_broken_descriptions(small: SmallSet, tmp_path: Path, content: str) -> None:
    folder = save(tmp_path / "set", small, [0, 1])
    (folder / "state.json").write_text(content)
    with pytest.raises(ManifestError, match=r"state\.json: .*; save the (data )?set again"):
        read_data_set(folder)


@pytest.mark.parametrize("cut", [1, 8, 100, 20_000])
def test_truncated_files(small: SmallSet, tmp_path: Path, cut: int) -> None:
    folder = save(tmp_path / "set", small, [0, 1, 2, 3, 4])
    (path,) = folder.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ManifestError, match=r"arrow: truncated: .*; copy it again"):
        read_data_set(folder)


def test_a_missing_file(small: SmallSet, tmp_path: Path) -> None:
    folder = save(tmp_path / "set", small, [0], [1])
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ManifestError, match=r"00001-of-00002\.arrow: cannot be read"):
        read_data_set(folder)


def test_a_row_that_is_no_audio(small: SmallSet, tmp_path: Path) -> None:
    small.files[1].write_bytes(b"this is no audio")
    clips = read_data_set(save(tmp_path / "set", small, [0, 1]))
    assert len(waves(clips[:1])) == 1
    with pytest.raises(AudioError, match=r"arrow, row 1, clip1\.flac: cannot be read as audio"):
        read_audio(clips[1].audio, RATE_HZ)
