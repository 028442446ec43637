"""Whatever reads a clip reads a part of a file, or a file in a tar, as if it were one of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bad_inputs import table_of
from small_sets import write_tar

from speechquant.benchmarks import evaluate
from speechquant.benchmarks.bench.timing_audio import TimingAudio
from speechquant.benchmarks.papers.calibration_cost import feeds_of_clip
from speechquant.benchmarks.papers.joined_clips import lots_of
from speechquant.benchmarks.peers.graphs import _feeds_of_clips
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CTC
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.scoring import Job, Trial
from speechquant.engines import open_recognizer
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.probes import open_module_probe
from speechquant.engines.scorers import new_scorer
from speechquant.engines.trials.task import ScoringTask
from speechquant.engines.whisper.probe import Seq2SeqProbe
from speechquant.pipeline.command import run
from speechquant.recipes.data import measured_seconds
from speechquant.training.samples import load_samples

RATE_HZ = 16_000
SECONDS = (0.6, 0.8, 0.5)
TEXTS = ("one two", "three", "four")
Clips = list[LabelledClip]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of three parts of one file and of the same three as files, 0.1 s between them."""
    folder = tmp_path_factory.mktemp("talk")
    rng, pause = np.random.default_rng(0), np.full(RATE_HZ // 10, 0.4, np.float32)
    pieces, parts, files, begin = [pause], [], [], 0.1
    for number, (seconds, text) in enumerate(zip(SECONDS, TEXTS, strict=True)):
        wave = (0.1 + 0.1 * number) * rng.standard_normal(round(seconds * RATE_HZ))
        pieces += [wave.astype(np.float32), pause]
        soundfile.write(folder / f"{number}.wav", pieces[-2], RATE_HZ, "FLOAT")
        row = {"text": text, "duration": seconds}
        parts.append({"audio_filepath": "talk.wav", "offset": round(begin, 3), **row})
        files.append({"audio_filepath": f"{number}.wav", **row})
        begin += seconds + 0.1
    soundfile.write(folder / "talk.wav", np.concatenate(pieces), RATE_HZ, "FLOAT")
    manifests = folder / "parts.jsonl", folder / "files.jsonl"
    for manifest, rows in zip(manifests, (parts, files), strict=True):
        manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifests


@pytest.fixture(scope="module")
def parts(data: tuple[Path, Path]) -> Clips:
    return read_data_set(data[0])


@pytest.fixture(scope="module")
def files(data: tuple[Path, Path]) -> Clips:
    return read_data_set(data[1])


@pytest.fixture(scope="module")
def shard(data: tuple[Path, Path]) -> Path:
    """A tar of the three files and their texts."""
    members = []
    for number, text in enumerate(TEXTS):
        content = (data[1].parent / f"{number}.wav").read_bytes()
        members += [(f"{number}.wav", content), (f"{number}.txt", text.encode())]
    return write_tar(data[1].parent / "shard.tar", *members)


def activations(bundle: Bundle, clips: Clips) -> object:
    with ProbeSession(bundle, 1) as probe:
        return [probe.activations_of(clip) for clip in clips]


def module_outputs(bundle: Bundle, clips: Clips) -> object:
    with open_module_probe(bundle, 1) as probe:
        return [probe.outputs_of(clip) for clip in clips]


READERS: dict[str, Callable[[Bundle, Clips], object]] = {
    "probe": activations,
    "module probe": module_outputs,
    "length": measured_seconds,
    "timing": lambda _, clips: TimingAudio(clips, RATE_HZ, 1.9).pieces(1.9, 1),
    "training": lambda _, clips: [sample.wave for sample in load_samples(clips)],
    "peers": lambda bundle, clips: list(_feeds_of_clips(bundle, clips)),
    "cost": lambda bundle, clips: [feeds_of_clip(bundle, clip) for clip in clips],
    "agreement": lambda _, clips: [lot.waves for lot in lots_of(clips, 0.5)],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_reads_the_part(
    tiny_bundle: Bundle, parts: Clips, files: Clips, reader: str
) -> None:
    read = READERS[reader]
    np.testing.assert_equal(read(tiny_bundle, parts), read(tiny_bundle, files))
    assert measured_seconds(tiny_bundle, parts) == pytest.approx(sum(SECONDS))


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_reads_a_file_in_a_tar(
    tiny_bundle: Bundle, shard: Path, files: Clips, reader: str
) -> None:
    read = READERS[reader]
    np.testing.assert_equal(read(tiny_bundle, read_data_set(shard)), read(tiny_bundle, files))


def table(bundle: Bundle) -> ScaleTable:
    if bundle.spec.task == CTC:
        return table_of(bundle)
    rows = {name: Scale(layer, 0.05, 0.05 * 127) for name, layer in bundle.spec.layers.items()}
    return ScaleTable(bundle.model_sha256, "max", Bits(), rows)


def test_scores_are_those_of_the_part(
    tiny_bundle: Bundle, whisper_bundle: Bundle, parts: Clips, files: Clips
) -> None:
    for bundle in (tiny_bundle, whisper_bundle):
        trial = Trial(table(bundle), quantizes_weights=False, label="max")
        jobs = [Job(trial, utterance) for utterance in range(3)]
        scores = [
            list(new_scorer(ScoringTask(bundle.folder, tuple(clips), threads=1)).score(jobs))
            for clips in (parts, files)
        ]
        assert scores[0] == scores[1]
        assert len(set(scores[0])) == 3


def test_a_whisper_model_hears_the_part(whisper_bundle: Bundle, parts: Clips, files: Clips) -> None:
    with Seq2SeqProbe(whisper_bundle, 1) as probe:
        for part, file in zip(parts, files, strict=True):
            np.testing.assert_equal(probe.activations_of(part), probe.activations_of(file))
    greedy = DecodingOptions(temperatures=(0.0,))
    with open_recognizer(whisper_bundle, decoding=greedy, threads=1) as recognizer:
        heard = [evaluate(recognizer, clips) for clips in (parts, files)]
    assert [clip.hypothesis for clip in heard[0].clips] == [
        clip.hypothesis for clip in heard[1].clips
    ]
    assert measured_seconds(whisper_bundle, parts) == pytest.approx(sum(SECONDS))


def printed(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_a_part_is_named_in_what_is_said_of_it(
    tiny_bundle: Bundle, data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tiny_bundle.folder), "--data", str(data[0])]) == 0
    shown = capsys.readouterr().out
    for begin, seconds in zip((0.1, 0.8, 1.7), SECONDS, strict=True):
        assert f"{data[0].parent}/talk.wav from {begin} s for {seconds} s: " in shown


def test_evaluate_and_calibrate(
    tiny_bundle: Bundle,
    data: tuple[Path, Path],
    shard: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, tables = [], []
    for number, source in enumerate((*data, shard)):
        asked = ["evaluate", tiny_bundle.folder, "--data", source]
        found.append(printed(asked, capsys))
        out = tmp_path / f"{number}.json"
        printed(["calibrate", tiny_bundle.folder, "--data", source, "--out", out, "--method",
                 "max"], capsys)  # fmt: skip
        tables.append(json.loads(out.read_text()))
    assert found[0]["wer"] == found[1]["wer"] == found[2]["wer"]
    assert found[0]["audio_seconds"] == found[1]["audio_seconds"] == pytest.approx(sum(SECONDS))
    assert tables[0]["tensors"] == tables[1]["tensors"]
    # A file in a tar is known by its bytes, as alone.
    assert tables[2] == tables[1]
    keys = [table["data"].pop("sha256") for table in tables[:2]]
    assert keys[0] != keys[1]
    assert tables[0]["data"] == tables[1]["data"]


def test_clips_that_cannot_be_read_are_skipped_where_that_is_asked_for(
    tiny_bundle: Bundle,
    data: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [json.loads(line) for line in data[1].read_text().splitlines()]
    for row in rows:
        row["audio_filepath"] = str(data[1].parent / row["audio_filepath"])
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is no audio")
    manifest = tmp_path / "manifest.jsonl"
    rows.insert(1, {"audio_filepath": str(bad), "text": "no"})
    manifest.write_text("\n".join(map(json.dumps, rows)))
    asked = ["evaluate", str(tiny_bundle.folder), "--data", str(manifest)]
    assert run(asked) == 1
    capsys.readouterr()
    found = printed([*asked, "--skip-unreadable"], capsys)
    assert found["wer"] == printed([*asked[:3], data[1]], capsys)["wer"]
    assert run([*asked, "--skip-unreadable"]) == 0
    assert f"warning: {manifest}: 1 of 4 clips left out" in capsys.readouterr().err
