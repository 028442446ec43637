from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from small_sets import RATE_HZ, SmallSet, assert_same, small_set, waves, write_tar

from speechquant.core.audio import AudioPart
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError

Cut = dict[str, Any]


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def cut_of(name: str, source: str, seconds: float, *texts: str | None, **values: Any) -> Cut:
    """A cut as lhotse writes it."""
    supervisions = [
        {"id": f"{name}-{index}", "recording_id": name, "start": 0.0, "duration": seconds,
         "channel": 0, "text": text, "speaker": "ann"}
        for index, text in enumerate(texts)
    ]  # fmt: skip
    recording = {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": source}],
        "sampling_rate": RATE_HZ,
        "num_samples": int(seconds * RATE_HZ),
        "duration": seconds,
        "channel_ids": [0],
    }
    return {
        "id": name, "start": 0.0, "duration": seconds, "channel": 0, "supervisions": supervisions,
        "recording": recording, "type": "MonoCut", **values,
    }  # fmt: skip


def cuts_of(small: SmallSet, name: Callable[[Path], str]) -> list[Cut]:
    return [
        cut_of(path.stem, name(path), soundfile.info(path).duration, text)
        for path, text in zip(small.files, small.texts, strict=True)
    ]


def write(path: Path, *cuts: Cut) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{json.dumps(cut)}\n" for cut in cuts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "cuts.jsonl", "dev_cuts_all.jsonl"])
def test_cuts_have_the_clips_of_the_manifest(small: SmallSet, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "set" / name, *cuts_of(small, lambda path: f"../files/{path.name}"))
    assert_same(path, small)
    if name.startswith("cuts"):
        assert_same(path.parent, small)
    assert read_data_set(path)[0].speaker == "ann"


def test_sources_may_be_named_from_where_the_command_runs(
    small: SmallSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "set" / "cuts.jsonl", *cuts_of(small, lambda path: f"files/{path.name}")
    )
    monkeypatch.chdir(tmp_path)
    assert_same(path, small)


def test_a_cut_may_be_a_part_of_its_recording(small: SmallSet, tmp_path: Path) -> None:
    cut = cut_of("a", str(small.files[0]), 0.5, "one", "two", start=0.125, duration=0.25)
    (clip,) = read_data_set(write(tmp_path / "cuts.jsonl", cut))
    assert clip.audio == AudioPart(small.files[0], 0.125, 0.25)
    assert clip.text == "one two"
    whole = waves(read_data_set(small.manifest))[0]
    np.testing.assert_array_equal(waves([clip])[0], whole[2000:6000])


def test_shar_folders(small: SmallSet, tmp_path: Path) -> None:
    folder = tmp_path / "shar"
    cuts = cuts_of(small, lambda path: "")
    for cut in cuts:
        cut["recording"]["sources"] = [{"type": "shar", "channels": [0], "source": ""}]
    for number, indices in enumerate(([0, 1, 2], [3, 4])):
        write(folder / f"cuts.{number:06}.jsonl.gz", *(cuts[index] for index in indices))
        members = []
        for index in indices:
            path = small.files[index]
            members.append((path.name, path.read_bytes()))
            members.append((f"{path.stem}.json", json.dumps(cuts[index]["recording"]).encode()))
        write_tar(folder / f"recording.{number:06}.tar", *members)
    assert_same(folder, small)
    assert_same(folder / "cuts.000001.jsonl.gz", small, [3, 4])
    clip = read_data_set(folder)[3]
    assert str(clip.audio) == f"{folder / 'recording.000001.tar'}, clip3.mp3"

    write_tar(folder / "recording.000001.tar", *members[:2])
    with pytest.raises(ManifestError, match=r"000001\.jsonl\.gz:2: no audio of the cut 'clip4'"):
        read_data_set(folder)
    (folder / "recording.000001.tar").unlink()
    with pytest.raises(
        ManifestError, match=r"gz:1: its audio is in .*000001\.tar, which is missing"
    ):
        read_data_set(folder)


def one_source(**values: Any) -> Cut:
    return {"id": "a", "sources": [{"channels": [0], **values}], "sampling_rate": RATE_HZ}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "MixedCut"}, "a MixedCut; only MonoCut is read"),
        ({"type": "MultiCut"}, "a MultiCut; only MonoCut is read"),
        ({"recording": one_source(type="command", source="rm x")}, r"'command', .* never run\)"),
        ({"recording": one_source(type="url", source="http://x")}, "of the type 'url', which"),
        ({"recording": one_source(type="file", source=3)}, "of the type 'file', which is not"),
        ({"recording": one_source(type="file", source="a.wav", channels=[0, 1])}, "channel 0 of sev"),
        ({"channel": 1}, "takes channel 1 of several in one file"),
        ({"recording": None}, "its recording is no JSON object"),
        ({"recording": {"sources": [3]}}, "its source is no JSON object"),
        (
            {"recording": {"sources": [], "transforms": [{"name": "Speed", "kwargs": {}}]}},
            "is changed by Speed when lhotse reads it",
        ),
        ({"recording": one_source(type="file")}, "of the type 'file', which is not"),
        ({"recording": {"sources": 3}}, "its sources are no list"),
        ({"recording": one_source(type="file", channels=3)}, "its channels are no list"),
        ({"supervisions": 3}, "its supervisions are no list"),
        ({"supervisions": ["yes"]}, "its supervision is no JSON object"),
        ({"supervisions": []}, "no text; write it there"),
        ({"start": "x"}, "'start' is 'x'; give seconds"),
        ({"duration": -1}, "'duration' is -1; give seconds"),
        ({"start": 0.4, "duration": 0.3}, "asks for 0.4 to 0.7 s of .*, which lasts 0.5 s"),
        ({"start": 3}, "asks for 3 to 3.5 s of"),
    ],
)  # fmt: skip
def test_cuts_that_are_refused(small: SmallSet, tmp_path: Path, changes: Cut, message: str) -> None:
    good = cut_of("a", str(small.files[0]), 0.5, "one")
    path = write(tmp_path / "cuts.jsonl.gz", good, {**good, **changes})
    with pytest.raises(ManifestError, match=rf"cuts\.jsonl\.gz:2: .*{message}"):
        read_data_set(path)


def test_other_rates_are_resampled_anyway(small: SmallSet, tmp_path: Path) -> None:
    cut = cut_of("a", str(small.files[0]), 0.5, "one")
    cut["recording"]["transforms"] = [{"name": "Resample", "kwargs": {"target": 16_000}}]
    assert len(read_data_set(write(tmp_path / "cuts.jsonl", cut))) == 1


def test_truncated_and_damaged_files(small: SmallSet, tmp_path: Path) -> None:
    cuts = cuts_of(small, str)
    path = write(tmp_path / "cuts.jsonl.gz", *cuts)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(
        ManifestError, match=r"cuts\.jsonl\.gz: truncated or damaged behind line \d"
    ):
        read_data_set(path)
    path.write_bytes(content[:60] + b"\xff" * 20 + content[80:])
    with pytest.raises(ManifestError, match=r"cuts\.jsonl\.gz: truncated or damaged behind line"):
        read_data_set(path)
    path.write_bytes(b"this is no gzip")
    with pytest.raises(ManifestError, match=r"cuts\.jsonl\.gz: truncated or damaged behind line 0"):
        read_data_set(path)
    path.write_bytes(gzip.compress(b"\n{]\n"))
    with pytest.raises(ManifestError, match=r"cuts\.jsonl\.gz:2: broken JSON"):
        read_data_set(path)
    path.write_bytes(gzip.compress(b"\xff\n"))
    with pytest.raises(ManifestError, match=r"cuts\.jsonl\.gz:1: not UTF-8 text"):
        read_data_set(path)


def test_of_several_splits_one_is_named(small: SmallSet, tmp_path: Path) -> None:
    cuts = cuts_of(small, str)
    for split in ("train", "dev"):
        write(tmp_path / f"set/cuts_{split}.jsonl.gz", *cuts)
    with pytest.raises(ManifestError, match="holds the splits dev, train"):
        read_data_set(tmp_path / "set")


def test_cuts_beside_their_compressed_file_are_listed_once(small: SmallSet, tmp_path: Path) -> None:
    for name in ("cuts.jsonl", "cuts.jsonl.gz"):
        write(tmp_path / "set" / name, *cuts_of(small, str))
    assert_same(tmp_path / "set", small)
