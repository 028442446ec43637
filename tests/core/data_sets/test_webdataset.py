from __future__ import annotations

import gzip
import json
import logging
import pickle
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_sets import RATE_HZ, SmallSet, assert_same, small_set, waves, write_tar

from speechquant.core.audio import read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import AudioError, ManifestError


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def members(
    small: SmallSet, indices: Sequence[int] | None = None, *, as_json: bool = False
) -> list[tuple[str, bytes]]:
    found = []
    for index in range(len(small.files)) if indices is None else indices:
        path, text = small.files[index], small.texts[index]
        found.append((f"a/{path.name}", path.read_bytes()))
        if as_json:
            content = json.dumps({"text": text, "speaker": "ann"}).encode()
            found.append((f"a/{path.stem}.json", content))
        else:
            found.append((f"a/{path.stem}.txt", text.encode()))
    return found


@pytest.mark.parametrize("as_json", [False, True])
def test_a_shard_has_the_clips_of_the_manifest(
    small: SmallSet, tmp_path: Path, as_json: bool
) -> None:
    shard = write_tar(tmp_path / "a.tar", *members(small, as_json=as_json))
    assert_same(shard, small)
    clip = read_data_set(shard)[2]
    assert str(clip.audio) == f"{shard}, a/clip2.ogg"
    assert clip.speaker == ("ann" if as_json else None)
    assert pickle.loads(pickle.dumps(clip)) == clip  # noqa: S301


def test_folders_and_patterns_of_shards(small: SmallSet, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for index in range(len(small.files)):
        write_tar(folder / f"shard-{index:03}.tar", *members(small, [index]))
    assert_same(folder, small)
    assert_same(f"{folder}/shard-*.tar", small)
    assert_same(f"{folder}/shard-{{000..004}}.tar", small)
    assert_same(f"{folder}/shard-00{{3,1}}.tar", small, [3, 1])
    with pytest.raises(ManifestError, match=r"shard-005\.tar: no such data"):
        read_data_set(f"{folder}/shard-{{000..005}}.tar")
    with pytest.raises(ManifestError, match="no file fits this pattern"):
        read_data_set(f"{folder}/part-*.tar")


def test_a_shard_without_texts(small: SmallSet, tmp_path: Path) -> None:
    audio = [one for one in members(small) if not one[0].endswith(".txt")]
    shard = write_tar(tmp_path / "a.tar", *audio)
    assert len(read_data_set(shard, require_text=False)) == len(small.files)
    with pytest.raises(ManifestError, match=r"a\.tar, a/clip0: no text; write it there or drop"):
        read_data_set(shard)


def test_other_files_are_left_alone(small: SmallSet, tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "a.tar", ("a/._clip0.wav", b"x"), ("README.txt", b"x"), *members(small)
    )
    assert_same(shard, small)


def test_two_audio_files_of_one_name(small: SmallSet, tmp_path: Path) -> None:
    content = small.files[0].read_bytes()
    shard = write_tar(tmp_path / "a.tar", ("a.wav", content), ("a.flac", content))
    with pytest.raises(
        ManifestError, match=r"a\.tar, a: 2 audio files of one name \(a\.wav, a\.flac"
    ):
        read_data_set(shard)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff", r"a\.tar, a\.txt: not UTF-8 text"),
        ("a.json", b"{", r"a\.tar, a\.json: broken JSON"),
        ("a.json", b'{"words": ""}', r"a\.tar, a: no text"),
        ("a.json", b'{"text": "\\ud800"}', r"a\.tar, a: 'text' has half a character"),
    ],
)
def test_broken_texts(
    small: SmallSet, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    audio = small.files[0].read_bytes()
    shard = write_tar(tmp_path / "a.tar", ("a.wav", audio), (name, content))
    with pytest.raises(ManifestError, match=message):
        read_data_set(shard)


def test_truncated_and_damaged_shards(small: SmallSet, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", *members(small))
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        places = {info.name: info.offset_data for info in tar}
    last = places["a/clip4.wav"]
    for end in (last + 5, last - 100, 100):
        shard.write_bytes(content[:end])
        with pytest.raises(ManifestError, match=r"a\.tar: .*; copy it again"):
            read_data_set(shard)
    shard.write_bytes(content[: last - 512] + b"\x7f" * 512 + content[last:])
    with pytest.raises(
        ManifestError, match=rf"a\.tar: damaged at byte {last - 512}; copy it again"
    ):
        read_data_set(shard)
    shard.write_bytes(b"this is no tar" * 100)
    with pytest.raises(ManifestError, match=r"a\.tar: cannot be read as a tar file \(.*\); copy"):
        read_data_set(shard)


def test_a_shard_without_an_end_mark(
    small: SmallSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_tar(tmp_path / "a.tar", *members(small))
    with tarfile.open(shard) as tar:
        begin = next(info.offset for info in tar if info.name == "a/clip3.mp3")
    shard.write_bytes(shard.read_bytes()[:begin])
    with caplog.at_level(logging.WARNING):
        assert len(read_data_set(shard)) == 3
    assert re.search(r"a\.tar: no end mark, as of a tar that was cut", caplog.text)


def test_a_compressed_shard(small: SmallSet, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", *members(small))
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(ManifestError, match=r"b\.tar\.gz: compressed, .*; unpack it with gunzip"):
        read_data_set(packed)


def test_a_shard_that_is_cut_after_it_was_listed(small: SmallSet, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", *members(small))
    clips = read_data_set(shard)
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(AudioError, match=r"a\.tar, a/clip0\.wav: truncated: .*; copy a\.tar again"):
        waves(clips)


def test_truncated_audio_inside(small: SmallSet, tmp_path: Path) -> None:
    content = small.files[0].read_bytes()[:-10]
    (clip,) = read_data_set(write_tar(tmp_path / "a.tar", ("a.wav", content), ("a.txt", b"yes")))
    with pytest.raises(AudioError, match=r"a\.tar, a\.wav: truncated: its header announces"):
        read_audio(clip.audio, RATE_HZ)


def test_of_several_splits_one_is_named(small: SmallSet, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        write_tar(tmp_path / f"set/{split}-000.tar", *members(small))
    with pytest.raises(ManifestError, match="holds the splits test, train"):
        read_data_set(tmp_path / "set")
    assert_same(f"{tmp_path}/set/test*.tar", small)
