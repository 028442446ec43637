from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from small_sets import RATE_HZ, SmallSet, assert_same, small_set, waves

from speechquant.core.audio import AudioPart, audio_seconds, read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import AudioError, ManifestError

SMALL_ROW_GROUP = 2


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def table_of(
    small: SmallSet, indices: Sequence[int] | None = None, text: str = "text", **columns: object
) -> pa.Table:
    """A table as `datasets` writes it."""
    chosen = range(len(small.files)) if indices is None else indices
    audio = [
        {"bytes": small.files[index].read_bytes(), "path": small.files[index].name}
        for index in chosen
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [small.texts[index] for index in chosen]
    return pa.table({"id": list(chosen), "audio": pa.array(audio, kind), text: texts, **columns})


def write(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=SMALL_ROW_GROUP)
    return path


@pytest.mark.parametrize(
    "text", ["text", "sentence", "transcription", "transcript", "normalized_text"]
)
def test_a_file_has_the_clips_of_the_manifest(small: SmallSet, tmp_path: Path, text: str) -> None:
    assert_same(write(tmp_path / "a.parquet", table_of(small, text=text)), small)


def test_a_folder_and_patterns_have_the_files_in_order(small: SmallSet, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder / "train-00000-of-00002.parquet", table_of(small, [0, 1, 2]))
    write(folder / "train-00001-of-00002.parquet", table_of(small, [3, 4]))
    assert_same(folder, small)
    assert_same(f"{folder}/*.parquet", small)
    assert_same(f"{folder}/train-{{00001..00000}}-of-00002.parquet", small, [3, 4, 0, 1, 2])
    write(folder / "test-00000-of-00001.parquet", table_of(small, [4]))
    with pytest.raises(
        ManifestError, match=r"set: holds the splits test, train; name one, such as"
    ):
        read_data_set(folder)
    assert_same(f"{folder}/test-*.parquet", small, [4])


def test_a_repository_has_the_files_in_a_folder(small: SmallSet, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    write(tmp_path / "repository/data/train-00000-of-00001.parquet", table_of(small))
    assert_same(tmp_path / "repository", small)


def test_clips_say_where_they_are(small: SmallSet, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table_of(small, speaker_id=[7, 7, 8, 8, 9]))
    clip = read_data_set(path)[3]
    assert (clip.path, clip.stem, clip.speaker) == (path, "clip3", "8")
    assert str(clip.audio) == f"{path}, row 3, clip3.mp3"
    assert str(AudioPart(clip.file, 0.25)) == f"{path}, row 3, clip3.mp3 from 0.25 s on"
    assert pickle.loads(pickle.dumps(clip)) == clip  # noqa: S301


def test_parts_of_a_clip(small: SmallSet, tmp_path: Path) -> None:
    clip = read_data_set(write(tmp_path / "a.parquet", table_of(small)))[1]
    wave = read_audio(clip.audio, RATE_HZ)
    assert audio_seconds(clip.audio) == len(wave) / RATE_HZ
    np.testing.assert_array_equal(
        read_audio(AudioPart(clip.file, 0.125, 0.25), RATE_HZ), wave[2000:6000]
    )


def test_clips_are_read_in_any_order(small: SmallSet, tmp_path: Path) -> None:
    clips = read_data_set(write(tmp_path / "a.parquet", table_of(small)))
    expected = waves(read_data_set(small.manifest))
    for index in (4, 0, 3, 1, 2, 4):
        np.testing.assert_array_equal(waves([clips[index]])[0], expected[index])


def test_a_file_written_again_is_read_again(small: SmallSet, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table_of(small, [0, 1]))
    (first, *_) = read_data_set(path)
    before = waves([first])[0]
    write(path, table_of(small, [4, 1]))
    assert len(waves([first])[0]) != len(before)


def test_a_row_may_name_a_file_in_place_of_bytes(small: SmallSet, tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": str(small.files[0])}, {"bytes": None, "path": "gone.wav"}]
    path = write(
        tmp_path / "a.parquet", pa.table({"audio": pa.array(rows, kind), "text": ["", ""]})
    )
    here, gone = read_data_set(path)
    assert len(read_audio(here.audio, RATE_HZ)) == RATE_HZ // 2
    with pytest.raises(AudioError, match=r"a\.parquet, row 1, gone\.wav: no audio in this row and"):
        read_audio(gone.audio, RATE_HZ)


def test_audio_without_names(small: SmallSet, tmp_path: Path) -> None:
    audio = pa.array([{"bytes": small.files[0].read_bytes()}, {"bytes": b"no audio"}])
    path = write(tmp_path / "a.parquet", pa.table({"speech": audio}))
    first, second = read_data_set(path, require_text=False)
    assert str(first.audio) == f"{path}, row 0"
    assert len(read_audio(first.audio, RATE_HZ)) == RATE_HZ // 2
    with pytest.raises(AudioError, match=r"a\.parquet, row 1: cannot be read as audio \("):
        read_audio(second.audio, RATE_HZ)


def test_missing_columns(small: SmallSet, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table_of(small, text="words"))
    with pytest.raises(
        ManifestError,
        match=r"no text column; its columns are id, audio, words; call one of them text,",
    ):
        read_data_set(path)
    assert read_data_set(path, require_text=False)[0].text is None
    path = write(tmp_path / "b.parquet", table_of(small).drop(["audio"]))
    with pytest.raises(ManifestError, match=r"no audio column .* its columns are id, text; give"):
        read_data_set(path)


def test_a_text_that_is_missing(small: SmallSet, tmp_path: Path) -> None:
    table = table_of(small, [0, 1]).drop(["text"]).append_column("text", [["yes", None]])
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(ManifestError, match=r"a\.parquet, row 1: no text; write it there or drop"):
        read_data_set(path)
    assert len(read_data_set(path, limit=1)) == 1


def test_truncated_and_damaged_files(small: SmallSet, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table_of(small))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ManifestError, match=r"a\.parquet: cannot be read \(.*\); copy it again"):
        read_data_set(path)
    path.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    with pytest.raises((ManifestError, AudioError), match=r"a\.parquet"):
        waves(read_data_set(path))


def test_truncated_audio_inside(small: SmallSet, tmp_path: Path) -> None:
    small.files[0].write_bytes(small.files[0].read_bytes()[:-100])
    path = write(tmp_path / "a.parquet", table_of(small))
    with pytest.raises(AudioError, match=r"a\.parquet, row 0, clip0\.wav: truncated: its header"):
        waves(read_data_set(path))


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch, small: SmallSet, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table_of(small))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a\.parquet: .* pip install 'speechquant\[data\]'"):
        read_data_set(path)


# Not getrusage, whose highest figure is the parent's at first.
MEMORY = Path("/proc/self/status")
HELD = """
import re, sys
from pathlib import Path
from speechquant.core.audio import read_audio
from speechquant.core.data_sets.read import read_data_set

def most_kilobytes():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

few = read_data_set(sys.argv[1])
for clip in few: read_audio(clip.audio, 16_000)
before = most_kilobytes()
many = read_data_set(sys.argv[2])
for clip in many: read_audio(clip.audio, 16_000)
print(len(few), len(many), most_kilobytes() - before)
"""


def write_noise(path: Path, clips: int) -> Path:
    """Write clips of 0.1 s, 100 in a row group."""
    wav = path.with_suffix(".wav")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (clips, RATE_HZ // 10)).astype(np.float32)
    soundfile.write(wav, noise[0], RATE_HZ, subtype="FLOAT")
    header = wav.read_bytes()[: -noise[0].nbytes]
    rows = [
        {"bytes": header + wave.tobytes(), "path": f"{index}.wav"}
        for index, wave in enumerate(noise)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array(rows, kind), "text": ["yes"] * clips})
    pq.write_table(table, path, row_group_size=100)
    return path


@pytest.mark.skipif(not MEMORY.exists(), reason="the system does not tell what a process held")
def test_ten_thousand_clips_hold_little_more_memory_than_a_hundred(tmp_path: Path) -> None:
    few, many = (
        write_noise(tmp_path / "few.parquet", 100),
        write_noise(tmp_path / "a.parquet", 10_000),
    )
    done = subprocess.run(
        [sys.executable, "-c", HELD, few, many], text=True, capture_output=True, check=True
    )
    *counts, kilobytes = map(int, done.stdout.split())
    assert counts == [100, 10_000]
    assert many.stat().st_size > 60e6
    # The text of each clip and where it lies, 300 bytes, and what pyarrow keeps for the next read.
    assert kilobytes * 1024 < many.stat().st_size / 3


def test_a_row_without_a_cell_has_no_audio(small: SmallSet, tmp_path: Path) -> None:
    whole = table_of(small)
    rows = whole.to_pylist()
    rows[1]["audio"] = None
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(rows, schema=whole.schema))
    clips = read_data_set(path)
    assert len(clips) == len(small.files)
    with pytest.raises(AudioError, match="row 1: no audio in this row"):
        read_audio(clips[1].audio, 16_000)
