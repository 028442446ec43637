"""Every bad input that has a line of its own: `python tests/bad_inputs.py` prints them as a table."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tiny import save_tiny_checkpoint

RATE_HZ = 16_000
_COMMAND = [sys.executable, "-m", "speechquant.pipeline.command"]


@dataclass(frozen=True)
class Workspace:
    """A good bundle and a good checkpoint, and a folder to spoil things in."""

    root: Path
    bundle: Path
    checkpoint: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def wav(self, name: str, wave: object, rate: int = RATE_HZ, subtype: str = "FLOAT") -> Path:
        path = self.path(name)
        soundfile.write(path, wave, rate, subtype=subtype)
        return path

    def manifest(self, name: str, *lines: str) -> Path:
        path = self.path(name)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def copy_of(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.path(name)))


@dataclass(frozen=True)
class Case:
    """A bad input, the command line that meets it, and what its one line must say."""

    name: str
    arguments: Callable[[Workspace], list[object]]
    expected: str
    must_not_exist: str | None = None


def make_workspace(root: Path) -> Workspace:
    checkpoint = save_tiny_checkpoint("hubert-layer", root / "checkpoint")
    bundle = root / "bundle"
    done = run(["export", checkpoint, bundle])
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return Workspace(root, bundle, checkpoint)


def run(arguments: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_COMMAND, *map(str, arguments)], text=True, capture_output=True)


def error_lines(stderr: str) -> list[str]:
    """Return what is left of stderr without the lines that report progress."""
    progress = ("torch runs", "tracing", "writing", "ONNX Runtime runs")
    return [line for line in stderr.splitlines() if line and not line.startswith(progress)]


def _no_audio(at: Workspace) -> list[object]:
    path = at.path("notes.wav")
    path.write_text("this is no audio\n" * 20)
    return ["transcribe", at.bundle, path]


def _truncated_wav(at: Workspace) -> list[object]:
    path = at.wav("truncated.wav", np.zeros(RATE_HZ), subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:20_000])
    return ["transcribe", at.bundle, path]


def _truncated_flac(at: Workspace) -> list[object]:
    path = at.wav(
        "truncated.flac", np.random.default_rng(0).uniform(-1, 1, RATE_HZ), subtype="PCM_16"
    )
    path.write_bytes(path.read_bytes()[:20_000])
    return ["transcribe", at.bundle, path]


def _transcribe(name: str, samples: list[float] | int) -> Callable[[Workspace], list[object]]:
    wave = np.zeros(samples) if isinstance(samples, int) else np.array(samples)
    return lambda at: ["transcribe", at.bundle, at.wav(name, wave)]


def _two_hours_of_silence(at: Workspace) -> list[object]:
    path = at.wav("long.flac", np.zeros(2 * 3600 * RATE_HZ, np.int16), subtype="PCM_16")
    return ["transcribe", at.bundle, path]


def _not_finite(value: float) -> Callable[[Workspace], list[object]]:
    wave = np.full(RATE_HZ, 0.1)
    wave[1234] = value
    return lambda at: ["transcribe", at.bundle, at.wav(f"{value}.wav", wave)]


def _evaluate(*lines: str) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        at.wav("good.wav", np.full(RATE_HZ, 0.1))
        return ["evaluate", at.bundle, "--data", at.manifest("manifest.jsonl", *lines)]

    return arguments


_GOOD_LINE = json.dumps({"audio_filepath": "good.wav", "text": "yes", "duration": 1.0})


def _missing_in_bundle(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "missing")
    (bundle / "vocab.json").unlink()
    return ["inspect", bundle]


def _truncated_bundle(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "truncated")
    model = bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    return ["transcribe", bundle, at.wav("good.wav", np.zeros(RATE_HZ))]


def _altered_bundle(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "altered")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    return ["inspect", bundle]


def _altered_description(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "description")
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace("HubertForCTC", "WavLMForCTC"))
    return ["inspect", bundle]


def _truncated_description(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "description-cut")
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text[:200])
    return ["inspect", bundle]


def _export(at: Workspace, checkpoint: Path) -> list[object]:
    return ["export", checkpoint, at.path("out")]


def _unsupported(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "unsupported")
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["HubertForSequenceClassification"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    return _export(at, checkpoint)


def _pickle(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "pickle")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    return _export(at, checkpoint)


def _truncated_weights(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "cut")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return _export(at, checkpoint)


def _no_head(at: Workspace) -> list[object]:
    from safetensors.numpy import load_file, save_file

    checkpoint = at.copy_of(at.checkpoint, "headless")
    weights = load_file(checkpoint / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("lm_head")}
    save_file(kept, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return _export(at, checkpoint)


def _no_preprocessor(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "no-preprocessor")
    (checkpoint / "preprocessor_config.json").unlink()
    return _export(at, checkpoint)


def _phoneme_tokenizer(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "phonemes")
    settings = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    return _export(at, checkpoint)


def _out_exists(at: Workspace) -> list[object]:
    at.path("taken").mkdir()
    return ["export", at.checkpoint, at.path("taken")]


CASES = (
    Case("a file that is no audio", _no_audio, r"notes\.wav: cannot be read as audio"),
    Case("a file that is not there", lambda at: ["transcribe", at.bundle, at.path("no.wav")],
         r"no\.wav: no such audio file"),
    Case("a truncated wav", _truncated_wav, r"truncated\.wav: truncated"),
    Case("a truncated flac", _truncated_flac, r"truncated\.flac: "),
    Case("zero samples", _transcribe("zero.wav", 0), r"zero\.wav: no samples"),
    Case("one sample", _transcribe("one.wav", 1), r"one\.wav: its length is 1 .* at least 400"),
    Case("2 hours of silence", _two_hours_of_silence, r"long\.flac: 7200 s of audio, at most 120"),
    Case("NaN in a float wav", _not_finite(float("nan")), r"nan\.wav: sample 1234 is nan"),
    Case("infinity in a float wav", _not_finite(float("inf")), r"inf\.wav: sample 1234 is inf"),
    Case("a folder without audio", lambda at: ["transcribe", at.bundle, at.checkpoint],
         r"checkpoint: no audio file in this folder"),
    Case("data that is not there", lambda at: ["evaluate", at.bundle, "--data", at.path("none")],
         r"none: no such data"),
    Case("a folder that is no data set",
         lambda at: ["evaluate", at.bundle, "--data", at.checkpoint], r"neither a manifest\.jsonl nor"),
    Case("a manifest with a missing file",
         _evaluate(_GOOD_LINE, '{"audio_filepath": "gone.wav", "text": "yes"}'),
         r"manifest\.jsonl:2: no such audio file: .*gone\.wav"),
    Case("a manifest with a missing key", _evaluate(_GOOD_LINE, '{"audio_filepath": "good.wav"}'),
         r"manifest\.jsonl:2: no string under the key 'text'"),
    Case("a manifest with broken JSON", _evaluate(_GOOD_LINE, _GOOD_LINE, "{'audio"),
         r"manifest\.jsonl:3: broken JSON"),
    Case("a manifest of segments",
         _evaluate(_GOOD_LINE, _GOOD_LINE.replace('"duration"', '"offset": 3.5, "duration"')),
         r"manifest\.jsonl:2: 'offset' is 3\.5"),
    Case("an empty manifest", _evaluate(), r"manifest\.jsonl: no clip in it"),
    Case("an unknown part of the zoo", lambda at: ["evaluate", at.bundle, "--data", "zoo:valid"],
         r"zoo:valid: no such part .* choose zoo:train"),
    Case("an unknown normalizer",
         lambda at: [*_evaluate(_GOOD_LINE)(at), "--normalizer", "german"],
         r"no normalizer 'german'; choose basic, whisper, none"),
    Case("a folder that is no bundle", lambda at: ["inspect", at.checkpoint], r"no bundle\.json in it"),
    Case("a bundle with a missing file", _missing_in_bundle, r"vocab\.json is missing"),
    Case("a bundle with a truncated file", _truncated_bundle, r"model\.onnx: altered or truncated"),
    Case("a bundle with an altered file", _altered_bundle, r"model\.onnx: altered or truncated"),
    Case("a bundle with an altered description", _altered_description, r"bundle\.json: altered"),
    Case("a bundle with a truncated description", _truncated_description, r"bundle\.json: not valid JSON"),
    Case("a checkpoint that is not there", lambda at: _export(at, at.path("nowhere")),
         r"nowhere: no such checkpoint folder", "out"),
    Case("a file instead of a checkpoint folder",
         lambda at: _export(at, at.checkpoint / "model.safetensors"), r"is a file; give the folder", "out"),
    Case("a tokenizer that does not spell", _phoneme_tokenizer,
         r"Wav2Vec2PhonemeCTCTokenizer does not spell", "out"),
    Case("an unsupported architecture", _unsupported,
         r"architecture HubertForSequenceClassification; .* can be exported", "out"),
    Case("a pickle instead of safetensors", _pickle, r"pytorch_model\.bin is a pickle", "out"),
    Case("truncated safetensors", _truncated_weights, r"cut: cannot be loaded", "out"),
    Case("a checkpoint without a CTC head", _no_head, r"headless: 2 weights are missing, lm_head", "out"),
    Case("a checkpoint without its preprocessor", _no_preprocessor,
         r"preprocessor_config\.json is missing", "out"),
    Case("an unknown random configuration", lambda at: ["export", "random:whale", at.path("out")],
         r"random:whale: no such configuration; choose random:wav2vec2-base", "out"),
    Case("an unknown model of the zoo", lambda at: ["export", "zoo:whale", at.path("out")],
         r"zoo:whale: no such model", "out"),
    Case("an OUT that exists", _out_exists, r"taken: already there; .* --force"),
    Case("an OUT with --force that is somebody's folder",
         lambda at: ["export", at.checkpoint, at.checkpoint, "--force"],
         r"checkpoint: there, and not made by this command"),
    Case("an OUT in a place that cannot be", lambda at: ["export", at.checkpoint,
         at.checkpoint / "config.json" / "out"], r"cannot be written"),
)  # fmt: skip

FULL_DISK_LINE = r"the disk is full; free some room"
INTERRUPTED_LINE = r"interrupted; nothing half-written"


def on_full_disk(at: Workspace) -> subprocess.CompletedProcess[str] | None:
    """Export to a file system of 200 kB; None where this machine lets nobody mount one."""
    disk = at.path("disk")
    disk.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size=200k none {disk}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount]).returncode != 0:
        return None
    export = " ".join([*_COMMAND, "export", str(at.checkpoint), str(disk / "out")])
    script = f"{mount} && {export}; code=$?; ls -A {disk}; exit $code"
    return subprocess.run([*unshare, script], text=True, capture_output=True)


def interrupted_export(at: Workspace, when: str | float) -> subprocess.CompletedProcess[str]:
    """Export and send Ctrl-C after some seconds, or as soon as stderr says `when`."""
    command = [*_COMMAND, "export", str(at.checkpoint), str(at.path("interrupted"))]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    before = ""
    if isinstance(when, str):
        assert process.stderr is not None
        while when not in before and (line := process.stderr.readline()):
            before += line
    else:
        time.sleep(when)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, before + stderr)


def _row(at: Workspace, name: str, stderr: str) -> str:
    line = error_lines(stderr)[-1].replace(f"{at.root}/", "").replace("|", "\\|")
    return f"| {name} | `{re.sub(r'`', '', line)}` |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = make_workspace(Path(folder) / "good")
        print(
            "# What a bad input prints\n\nMade by `make bad-inputs`. Every line goes to stderr, "
            "the exit code is 1, nothing half-written is left.\n\n| input | line |\n|---|---|"
        )
        for number, case in enumerate(CASES):
            at = Workspace(Path(folder) / str(number), base.bundle, base.checkpoint)
            at.root.mkdir()
            print(
                _row(at, case.name, run(case.arguments(at)).stderr).replace(f"{folder}/good/", "")
            )
        full = on_full_disk(base)
        if full is not None:
            print(_row(base, "a full disk", full.stderr))
        print(_row(base, "Ctrl-C", interrupted_export(base, "tracing").stderr))


if __name__ == "__main__":
    main()
