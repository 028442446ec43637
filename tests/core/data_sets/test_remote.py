from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_sets import SmallSet, assert_same, small_set

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError, MissingPackageError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


@pytest.fixture
def bucket(cache: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    yield "memory://bucket"
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def put(bucket: str, name: str, content: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(f"/bucket/{name}", content)
    return f"{bucket}/{name}"


def put_all(bucket: str, folder: Path, name: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            put(bucket, f"{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"{bucket}/{name}"


def copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_manifest_and_the_files_beside_it(small: SmallSet, bucket: str, cache: Path) -> None:
    uri = put_all(bucket, small.folder, "set")
    assert len(read_data_set(f"{uri}/manifest.jsonl", limit=2)) == 2
    assert copies(cache) == ["clip0.wav", "clip1.flac", "manifest.jsonl"]
    assert_same(f"{uri}/manifest.jsonl", small)
    assert_same(uri, small)


def test_a_local_manifest_may_name_uris(small: SmallSet, bucket: str, tmp_path: Path) -> None:
    uri = put(bucket, "clip.wav", small.files[0].read_bytes())
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": uri, "text": small.texts[0]}))
    (clip,) = read_data_set(manifest)
    assert clip.path.read_bytes() == small.files[0].read_bytes()


def test_patterns_of_parquet(small: SmallSet, bucket: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for index, path in enumerate(small.files):
        audio = [{"bytes": path.read_bytes(), "path": path.name}]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"audio": audio, "text": [small.texts[index]]}), sink)
        put(bucket, f"data/train-{index}.parquet", sink.getvalue().to_pybytes())
    assert_same(f"{bucket}/data/*.parquet", small)
    assert_same(f"{bucket}/data/train-{{0..4}}.parquet", small)
    assert_same(f"{bucket}/data", small)
    with pytest.raises(ManifestError, match=r"bucket/data/x\*: no file fits this pattern"):
        read_data_set(f"{bucket}/data/x*")


def test_lhotse_cuts_and_kaldi_folders(small: SmallSet, bucket: str, tmp_path: Path) -> None:
    put_all(bucket, small.folder, "set/audio")
    cuts = [
        {
            "type": "MonoCut", "id": path.stem, "supervisions": [{"text": text}],
            "recording": {
                "sources": [{"type": "file", "channels": [0], "source": f"audio/{path.name}"}]
            },
        }
        for path, text in zip(small.files, small.texts, strict=True)
    ]  # fmt: skip
    lines = "\n".join(map(json.dumps, cuts))
    assert_same(put(bucket, "set/cuts.jsonl.gz", gzip.compress(lines.encode())), small)
    rows = [f"{path.stem} audio/{path.name}\n" for path in small.files]
    put(bucket, "kaldi/wav.scp", "".join(rows).encode())
    put_all(bucket, small.folder, "kaldi/audio")
    texts = [f"{path.stem} {text}\n" for path, text in zip(small.files, small.texts, strict=True)]
    put(bucket, "kaldi/text", "".join(texts).encode())
    assert_same(f"{bucket}/kaldi", small)


def test_a_file_is_copied_once_while_it_stays_the_same(
    small: SmallSet, bucket: str, cache: Path
) -> None:
    uri = put_all(bucket, small.folder, "set")
    read_data_set(uri)
    (copy,) = cache.rglob("manifest.jsonl")
    before = copy.stat().st_mtime_ns
    read_data_set(uri)
    assert copy.stat().st_mtime_ns == before
    time.sleep(0.01)
    put(bucket, "set/manifest.jsonl", small.manifest.read_bytes().splitlines()[0])
    assert len(read_data_set(uri)) == 1


def test_what_is_not_there(bucket: str) -> None:
    with pytest.raises(ManifestError, match=r"memory://bucket/none\.jsonl: no such data; check"):
        read_data_set(f"{bucket}/none.jsonl")
    uri = put(bucket, "manifest.jsonl", b'{"audio_filepath": "gone.wav", "text": ""}')
    with pytest.raises(ManifestError, match=r"memory://bucket/gone\.wav: no such data; check"):
        read_data_set(uri)


def test_a_protocol_that_is_unknown(cache: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"whale://x: cannot be read \(Protocol not known: whale"
    ):
        read_data_set("whale://x")


def test_without_fsspec(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingPackageError, match=r"s3://x: .* pip install 'speechquant\[data\]'"):
        read_data_set("s3://x")


def test_of_several_folders_none_is_left_out(small: SmallSet, bucket: str, cache: Path) -> None:
    for split in ("train", "test"):
        put_all(bucket, small.folder, split)
    with pytest.raises(ManifestError, match="memory://bucket/train is a folder; name one"):
        read_data_set(f"{bucket}/{{train,test}}")
