from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from numpy.typing import NDArray
from tiny import save_tiny_checkpoint, tiny_model

from speechquant.benchmarks.bench.candidates import candidates_of, peer_candidates
from speechquant.benchmarks.peers import graphs as peer_graphs
from speechquant.benchmarks.peers import make as peers
from speechquant.benchmarks.peers.graphs import IntegerFormat, Recipe, integer_format, make_static
from speechquant.benchmarks.peers.make import MissingPeer, Peer, make_peers, open_peer
from speechquant.benchmarks.peers.torch import TorchSession, local_checkpoint
from speechquant.core.bundles import Bundle
from speechquant.core.errors import (
    BundleError,
    CheckpointError,
    EngineError,
    OptionError,
    SpeechquantError,
)
from speechquant.core.manifests import LabelledClip
from speechquant.core.processor import Processor, read_processor
from speechquant.engines import open_session
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.ctc.recognizer import CtcRecognizer

RATE_HZ = 16_000
STATIC = [f"ONNX Runtime static INT8, {method}" for method in ("MinMax", "Percentile", "Entropy")]
DYNAMIC, NNCF = "ONNX Runtime dynamic INT8", "NNCF + OpenVINO INT8"
NAMES = [*STATIC, DYNAMIC, NNCF, "torch fp32", "torch bf16"]
# One of each way to make and to run a peer but NNCF's, whose imports alone take ten seconds.
QUICK_NAMES = [STATIC[0], DYNAMIC, "torch fp32", "torch bf16"]


def write_clips(folder: Path, seconds: Sequence[float]) -> list[LabelledClip]:
    clips = []
    for seed, length in enumerate(seconds):
        path = folder / f"{seed}.wav"
        wave = 0.1 * np.random.default_rng(seed).standard_normal(int(length * RATE_HZ))
        soundfile.write(path, wave, RATE_HZ)
        clips.append(LabelledClip(path, None))
    return clips


def differences(peer: Peer, bundle: Bundle, waves: Sequence[NDArray[np.float32]]) -> list[float]:
    """Of each clip's own frames: |peer - float| over |float|."""
    feeds = feeds_of(bundle.spec, waves)
    with open_session(bundle, provider="cpu", threads=1) as session:
        expected = session.run(feeds)["logits"]
    with open_peer(peer, bundle, 1) as session:
        logits = session.run(feeds)["logits"]
    assert logits.dtype == np.float32
    frames = [bundle.spec.frames_of(len(wave)) for wave in waves]
    return [
        float(np.linalg.norm(ours[:count] - theirs[:count]) / np.linalg.norm(theirs[:count]))
        for ours, theirs, count in zip(logits, expected, frames, strict=True)
    ]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledClip]:
    # Of different lengths, which ONNX Runtime's histograms refuse when given at once.
    return write_clips(tmp_path_factory.mktemp("clips"), (1.0, 0.7))


@pytest.fixture(scope="module")
def made(
    tiny_bundle: Bundle, clips: list[LabelledClip], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Peer | MissingPeer], list[tuple[int, int]]]:
    folder, steps = tmp_path_factory.mktemp("peers"), []
    found = make_peers(
        tiny_bundle,
        clips,
        folder,
        threads=1,
        names=QUICK_NAMES,
        on_step=lambda *step: steps.append(step),
    )
    assert [peer.name for peer in found] == QUICK_NAMES
    return folder, {peer.name: peer for peer in found}, steps


@pytest.fixture(scope="module")
def all_made(
    tiny_bundle: Bundle, clips: list[LabelledClip], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Peer | MissingPeer]:
    found = make_peers(tiny_bundle, clips, tmp_path_factory.mktemp("all"), threads=1)
    assert [peer.name for peer in found] == NAMES
    return {peer.name: peer for peer in found}


def ready(peer: Peer | MissingPeer) -> Peer:
    if isinstance(peer, MissingPeer):
        if "not installed" in peer.reason:
            pytest.skip(peer.reason)
        pytest.fail(f"{peer.name}: {peer.reason}")
    return peer


def without_wrong_kernels() -> AbstractContextManager[None]:
    """Keep torch from oneDNN's kernels.

    Those for AMX get a grouped convolution in bfloat16 wrong that has fewer than 16 channels a group
    (torch 2.13): off by more than its values. The tiny models have 12, real ones 48 and more.
    """
    import torch

    flags: AbstractContextManager[None] = torch.backends.mkldnn.flags(enabled=False)  # type: ignore[no-untyped-call]
    return flags


# One level of 8 bits is 1/255 of a range, and two tiny blocks add little to it; bfloat16 has 8 bits.
@pytest.mark.parametrize(
    ("name", "precision", "farthest"),
    [
        *(
            pytest.param(name, "INT8", 0.2, marks=() if name in QUICK_NAMES else pytest.mark.slow)
            for name in (*STATIC, DYNAMIC, NNCF)
        ),
        ("torch fp32", "fp32", 1e-5),
        ("torch bf16", "bf16", 0.1),
    ],
)
def test_each_peer_computes_nearly_what_the_bundle_does(
    name: str,
    precision: str,
    farthest: float,
    request: pytest.FixtureRequest,
    tiny_bundle: Bundle,
    noise: NDArray[np.float32],
) -> None:
    if name in QUICK_NAMES:
        peer = ready(request.getfixturevalue("made")[1][name])
    else:
        peer = ready(request.getfixturevalue("all_made")[name])
    assert peer.precision == precision
    if name == NNCF and "amx_int8" in (read_processor().instructions or ()):
        # In OpenVINO 2026.4: off by 0.5, by 0.06 with ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI.
        pytest.skip("OpenVINO's INT8 kernels for AMX get the tiny model of NNCF wrong")
    with without_wrong_kernels():
        off = differences(peer, tiny_bundle, [noise, noise[:20_000]])
    assert max(off) < farthest
    assert precision == "fp32" or min(off) > 1e-4  # it is not the float graph
    with CtcRecognizer(tiny_bundle, open_peer(peer, tiny_bundle, 1)) as recognizer:
        assert len(recognizer.transcribe([noise])) == 1


def test_progress_is_told(made: tuple[Path, object, list[tuple[int, int]]]) -> None:
    # One check serves both peers of torch.
    assert made[2] == [(step, 3) for step in range(1, 4)]


def test_names() -> None:
    recipes = peer_graphs.graph_recipes(read_processor())
    assert [recipe.name for recipe in recipes] == NAMES[:-2]


def test_sizes(
    made: tuple[Path, dict[str, Peer | MissingPeer], object], tiny_bundle: Bundle
) -> None:
    folder, found, _ = made
    static = ready(found[STATIC[0]])
    assert static.path == folder / "onnxruntime-static-minmax" / "model.onnx"
    assert static.size_bytes == static.path.stat().st_size
    weights = sum(weight.numel() for weight in tiny_model("hubert-layer").parameters())
    # Folded, the positional convolution has lost the 16 lengths of its weight norm.
    assert ready(found["torch fp32"]).size_bytes == 4 * (weights - 16)
    assert ready(found["torch bf16"]).size_bytes == 2 * (weights - 16)


def test_every_product_and_convolution_is_quantized(
    made: tuple[Path, dict[str, Peer | MissingPeer], object],
) -> None:
    path = ready(made[1][STATIC[0]]).path
    assert path is not None
    nodes = onnx.load(path).graph.node
    written = {name: node.op_type for node in nodes for name in node.output}
    products = [node for node in nodes if node.op_type in ("Conv", "MatMul")]
    # 7 convolutions and a positional one; 2 blocks of 4 projections, 2 attention products and 2
    # feed-forward layers; a feature projection and a head.
    assert len(products) == 8 + 2 * 8 + 2
    for node in products:
        assert [written.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2


def test_what_is_made_is_taken_up_again(
    made: tuple[Path, dict[str, Peer | MissingPeer], object],
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, found, _ = made
    monkeypatch.setattr(peers, "_run_alone", lambda *_: peers._Failure("made again"))
    again = make_peers(tiny_bundle, clips, folder, threads=1, names=QUICK_NAMES)
    graphs = [peer for peer in again if isinstance(peer, Peer)]
    assert graphs == [peer for peer in found.values() if isinstance(peer, Peer) and peer.path]
    assert len(graphs) == 2
    # Other clips, another bundle, or a damaged file, and it is not what was made.
    for other_bundle, other_clips in (
        (tiny_bundle, clips[:1]),
        (replace(tiny_bundle, files={**tiny_bundle.files, "model.onnx": "0" * 64}), clips),
    ):
        again = make_peers(other_bundle, other_clips, folder, names=STATIC[:1])
        assert "made again" in reasons(again)[STATIC[0]]


def reasons(found: Sequence[Peer | MissingPeer]) -> dict[str, str]:
    return {peer.name: peer.reason for peer in found if isinstance(peer, MissingPeer)}


def write_text(text: str, bundle: Bundle, clips: object, path: Path) -> None:
    path.write_text(text)


def fail(bundle: Bundle, clips: object, path: Path) -> None:
    path.write_text("half")
    raise ValueError("no such\noperator")


def crash(bundle: Bundle, clips: object, path: Path) -> None:
    print("last words", flush=True)
    os._exit(9)


def run_out_of_memory(bundle: Bundle, clips: object, path: Path) -> None:
    np.empty(1 << 46, np.int8)


def run_here(_log: Path, task: Callable[..., object], *arguments: object) -> object:
    """Stands for `peers._run_alone`."""
    try:
        return task(*arguments)
    except SpeechquantError as error:
        return peers._Failure(str(error))


def recipes(monkeypatch: pytest.MonkeyPatch, *made: Recipe) -> None:
    monkeypatch.setattr(peers, "graph_recipes", lambda processor: list(made))
    monkeypatch.setattr(peers, "_TORCH_PACKAGES", ("no_torch_here",))


def test_one_that_fails_leaves_the_rest(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes(
        monkeypatch,
        Recipe("fails", "fails", "", (), fail),
        Recipe("crashes", "crashes", "", (), crash),
        Recipe("is too large", "large", "", (), run_out_of_memory),
        Recipe("needs much", "much", "", ("no_such_package", "onnx"), fail),
        Recipe("works", "works", "well", (), partial(write_text, "graph")),
    )
    folder = tmp_path / "peers"
    found = make_peers(tiny_bundle, clips, folder)
    told = reasons(found)
    assert told["fails"] == "no such operator"
    assert told["crashes"].startswith("its process was killed, most likely for want of memory")
    assert (folder / "crashes.log").read_text() == "last words\n"
    assert told["is too large"].startswith("ran out of memory")
    assert told["needs much"] == "no-such-package not installed: pip install no-such-package"
    assert told["torch bf16"] == "no-torch-here not installed: pip install no-torch-here"
    works = found[4]
    assert isinstance(works, Peer)
    assert works.path is not None and works.path.read_text() == "graph"
    # Nothing half-written; what a killed process left behind is hidden, until the next one comes.
    assert [path.name for path in folder.glob("[!.]*") if path.is_dir()] == ["works"]


def test_peers_are_chosen_by_parts_of_their_names(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = ("Tool static", "Tool dynamic", "Other")
    recipes(
        monkeypatch,
        *(Recipe(name, name[-3:], "", (), partial(write_text, name)) for name in kinds),
    )
    steps: list[tuple[int, int]] = []

    def chosen(*names: str) -> list[str]:
        found = make_peers(
            tiny_bundle, clips, tmp_path, names=names, on_step=lambda *step: steps.append(step)
        )
        return [peer.name for peer in found]

    assert chosen("tool") == ["Tool static", "Tool dynamic"]
    assert steps == [(1, 2), (2, 2)]
    assert chosen("other", "bf16") == ["Other", "torch bf16"]
    assert chosen() == [*kinds, "torch fp32", "torch bf16"]
    for part in ("nnfc", ""):
        with pytest.raises(OptionError, match="in its name; they are Tool static, "):
            make_peers(tiny_bundle, clips, tmp_path, names=["tool", part])


def test_changed_and_damaged_graphs_are_made_anew(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def text_with(how: str, text: str, data: Sequence[LabelledClip]) -> str:
        recipes(monkeypatch, Recipe("it", "it", how, (), partial(write_text, text)))
        (peer, *_) = make_peers(tiny_bundle, data, tmp_path)
        assert isinstance(peer, Peer) and peer.path is not None
        return peer.path.read_text()

    assert text_with("so", "1", clips) == "1"
    assert text_with("so", "2", clips) == "1"
    assert text_with("otherwise", "3", clips) == "3"
    assert text_with("otherwise", "4", clips[:1]) == "4"
    (tmp_path / "it" / "model.onnx").write_text("altered")
    assert text_with("otherwise", "5", clips[:1]) == "5"


def test_what_cannot_be_compared_is_refused(
    tiny_bundle: Bundle, clips: list[LabelledClip], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="no clips"):
        make_peers(tiny_bundle, [], tmp_path)
    quantized = replace(tiny_bundle, spec=replace(tiny_bundle.spec, precision="w8a8"))
    with pytest.raises(BundleError, match="already quantized"):
        make_peers(quantized, clips, tmp_path)
    with pytest.raises(EngineError, match="the graph of it is gone"):
        open_peer(Peer("it", "", "INT8", "onnxruntime", tmp_path / "none"), tiny_bundle, 1)


def test_formats_are_those_that_each_processor_is_advised() -> None:
    vnni = Processor("GenuineIntel", frozenset({"avx512_vnni"}))
    old = Processor("GenuineIntel", frozenset({"avx2"}))
    assert integer_format(vnni, "x86_64") == IntegerFormat(False, False)
    assert integer_format(old, "x86_64") == IntegerFormat(False, True)
    assert integer_format(Processor(), "AMD64") == IntegerFormat(False, True)
    assert integer_format(Processor(), "arm64") == IntegerFormat(True, False)
    bfloat16 = Processor("GenuineIntel", frozenset({"amx_bf16"}))
    hints = [peer_graphs.graph_recipes(which)[-1].settings for which in (bfloat16, old)]
    assert hints == [{"INFERENCE_PRECISION_HINT": name} for name in ("bf16", "f32")]


@pytest.mark.parametrize(
    ("integers", "activations", "largest"),
    [(IntegerFormat(False, True), np.uint8, 64), (IntegerFormat(True, False), np.int8, 127)],
)
def test_static_graphs_for_other_processors(
    integers: IntegerFormat,
    activations: type,
    largest: int,
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    make_static(tiny_bundle, clips, path, method="MinMax", integers=integers)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    constants = {
        constant.name: onnx.numpy_helper.to_array(constant)
        for constant in onnx.load(path).graph.initializer
    }
    weights = [values for values in constants.values() if values.dtype == np.int8 and values.ndim]
    assert max(int(np.abs(levels.astype(int)).max()) for levels in weights) == largest
    points = [values for name, values in constants.items() if name.endswith("_zero_point")]
    assert np.dtype(activations) in {values.dtype for values in points if not values.ndim}


@pytest.mark.parametrize("variant", ["wav2vec2-group", "data2vec"])
def test_torch_takes_padding_as_the_checkpoint_wants_it(
    variant: str, tmp_path: Path, noise: NDArray[np.float32]
) -> None:
    import torch

    checkpoint = save_tiny_checkpoint(variant, tmp_path / "checkpoint")
    lengths, model = np.array([32_000, 20_000]), tiny_model(variant)
    values = np.stack([noise, np.where(np.arange(32_000) < 20_000, noise, 0)]).astype(np.float32)
    with TorchSession(str(checkpoint), "float32", 1) as session:
        logits = session.run({"input_values": values, "input_lengths": lengths})["logits"]
    with torch.inference_mode():
        mask = torch.ones(values.shape, dtype=torch.long)
        mask[1, 20_000:] = 0
        padded = model(torch.from_numpy(values), attention_mask=mask).logits.numpy()
        alone = model(torch.from_numpy(values[1:, :20_000].copy())).logits.numpy()[0]
    # Only transformers' own result with a mask for the one, only the clip alone for the other.
    expected = alone if variant == "data2vec" else padded[1, : len(alone)]
    np.testing.assert_allclose(logits[1, : len(alone)], expected, atol=1e-5)
    assert np.abs(padded[1, : len(alone)] - alone).max() > 1e-3  # so they can be told apart


def with_checkpoint(bundle: Bundle, source: str) -> Bundle:
    return replace(bundle, made_from={"checkpoint": source})


def test_checkpoints_are_found_without_a_network(
    tiny_bundle: Bundle, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert local_checkpoint(tiny_bundle) == str(tiny_checkpoint)
    name = "random:hubert-base"
    assert local_checkpoint(with_checkpoint(tiny_bundle, name)) == name
    zoo = Path(local_checkpoint(with_checkpoint(tiny_bundle, "zoo:hubert")))
    assert (zoo / "model.safetensors").is_file()
    for source in ("nobody/no-such-model", "no-folder", ""):
        with pytest.raises(CheckpointError, match="neither a folder here nor in the hub's"):
            local_checkpoint(with_checkpoint(tiny_bundle, source))


def test_a_checkpoint_that_has_changed_is_not_compared_with(
    tiny_bundle: Bundle, clips: list[LabelledClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_tiny_checkpoint("wav2vec2-layer", tmp_path / "checkpoint")
    recipes(monkeypatch)
    monkeypatch.setattr(peers, "_TORCH_PACKAGES", ("torch",))
    monkeypatch.setattr(peers, "_run_alone", run_here)  # a process of its own loads torch again
    told = reasons(make_peers(with_checkpoint(tiny_bundle, str(other)), clips, tmp_path / "peers"))
    assert set(told) == {"torch fp32", "torch bf16"}
    assert "is no longer what the bundle was made from" in told["torch fp32"]


_INTERRUPTED = """
import multiprocessing, signal, sys, time
from pathlib import Path
from speechquant.benchmarks.peers import make as peers

def interrupt(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        peers._run_alone(Path(sys.argv[1]), time.sleep, 120)
    except KeyboardInterrupt:
        print(multiprocessing.active_children())
"""


def test_an_interrupt_does_not_wait_for_the_peer_that_is_being_made(tmp_path: Path) -> None:
    # In a process of its own: this one may have used AMX, and there a signal once ended it outright.
    script = tmp_path / "interrupted.py"
    script.write_text(_INTERRUPTED)
    arguments = [sys.executable, str(script), str(tmp_path / "log")]
    done = subprocess.run(arguments, text=True, capture_output=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_one_calibrated_on_other_clips_is_not_taken_for_what_was_measured(
    tiny_bundle: Bundle,
    clips: list[LabelledClip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes(monkeypatch, Recipe("it", "it", "so", (), partial(write_text, "graph")))
    (source,) = candidates_of([tiny_bundle.folder], ["cpu"])
    found = []
    for data in (clips, clips, clips[:1]):
        (peer, *_) = make_peers(tiny_bundle, data, tmp_path)
        assert isinstance(peer, Peer)
        found += peer_candidates(source, [peer], names_model=False)
    assert found[0].sha256 == found[1].sha256
    assert found[0].sha256 not in (found[2].sha256, source.sha256)
