"""What the bench compares bundles with: other quantizers of the same float bundle, and torch.

`make_peers` makes each in a process of its own, so that its memory is given back and its failure
is a line of the report; what is made stays and is taken up again.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from speechquant.benchmarks.peers.graphs import OPENVINO, Recipe, graph_recipes
from speechquant.benchmarks.peers.torch import (
    BFLOAT16,
    FLOAT32,
    TorchSession,
    check_torch,
    local_checkpoint,
)
from speechquant.core.artifact_folders import (
    FolderKind,
    check_files,
    digest_of,
    new_described_folder,
    read_description,
)
from speechquant.core.bundles import FLOAT_PRECISION, Bundle, require_float
from speechquant.core.errors import EngineError, OptionError, one_line
from speechquant.core.files import storage_errors
from speechquant.core.interrupts import out_of_reach_of_interrupts
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.processor import read_processor
from speechquant.core.progress import OnStep
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options
from speechquant.engines.openvino.session import OpenVinoSession
from speechquant.engines.runners import Session

TORCH = "torch"

_KIND = FolderKind(
    "peer", "peer.json", "speechquant.peer/1", "speechquant bench --peers", EngineError
)
_TORCH_PACKAGES = ("torch", "transformers", "safetensors")
_KIB = 1 << 10
Result = TypeVar("Result")


@dataclass(frozen=True)
class Peer:
    """Something to compare with, ready to be opened.

    `name` is what a table calls it, `how` a line on how it is configured. `path` is its graph, None
    for torch, whose weights take `weight_bytes`. `runtime` opens it with `settings`. `key` is a
    hash of all that its graph was made of.
    """

    name: str
    how: str
    precision: str
    runtime: str
    path: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    weight_bytes: int | None = None
    key: str | None = None

    @property
    def size_bytes(self) -> int | None:
        """The bytes of its graph and weights, or of its parameters."""
        if self.path is None:
            return self.weight_bytes
        return sum(
            file.stat().st_size
            for file in self.path.parent.iterdir()
            if file.is_file() and file.name != _KIND.description
        )


@dataclass(frozen=True)
class MissingPeer:
    """A peer that could not be made here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Failure:
    reason: str


def make_peers(
    bundle: Bundle,
    clips: Sequence[LabelledClip],
    folder: Path,
    *,
    names: Sequence[str] = (),
    threads: int | None = None,
    on_step: OnStep | None = None,
) -> list[Peer | MissingPeer]:
    """Return the peers of a float bundle in a fixed order, calibrated on `clips`.

    They are those with one of `names` in their name, or all where there is none. Their graphs lie
    in `folder`, and those that are there are not made again. `threads` are those of the check that
    torch computes what the bundle does; quantizers take all. Raises BundleError, OptionError and
    StorageError; what goes wrong with one peer is its MissingPeer.
    """
    require_float(bundle)
    require_peers(names)
    if not clips:
        raise OptionError("no clips to calibrate the peers on; give at least one")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clips_key = data_key([clip_key(clip) for clip in clips])
    recipes = [
        recipe for recipe in graph_recipes(read_processor()) if _is_among(names, recipe.name)
    ]
    has_torch = any(_is_among(names, name) for name, *_ in _TORCH_PEERS)
    peers: list[Peer | MissingPeer] = []
    total = len(recipes) + has_torch
    for recipe in recipes:
        peers.append(_graph_peer(recipe, bundle, clips, clips_key, folder))
        if on_step is not None:
            on_step(len(peers), total)
    if has_torch:
        made = _torch_peers(bundle, folder, threads)
        peers += [peer for peer in made if _is_among(names, peer.name)]
        if on_step is not None:
            on_step(total, total)
    return peers


def require_peers(names: Sequence[str]) -> None:
    """Raise OptionError where one of `names` is part of no peer's name."""
    known = [recipe.name for recipe in graph_recipes(read_processor())]
    known += [name for name, *_ in _TORCH_PEERS]
    for part in names:
        if not any(_is_among([part], name) for name in known):
            raise OptionError(f"no peer has {part!r} in its name; they are {', '.join(known)}")


def _is_among(names: Sequence[str], name: str) -> bool:
    return not names or any(part and part.lower() in name.lower() for part in names)


def _graph_peer(
    recipe: Recipe,
    bundle: Bundle,
    clips: Sequence[LabelledClip],
    clips_key: str,
    folder: Path,
) -> Peer | MissingPeer:
    if reason := _missing(recipe.packages):
        return MissingPeer(recipe.name, reason)
    versions = {package: _version(package) for package in recipe.packages}
    key = digest_of(
        {
            "model_sha256": bundle.model_sha256,
            "clips": clips_key,
            "recipe": [recipe.name, recipe.how, versions],
        }
    )
    target = folder / recipe.folder
    if not _is_made(target, key):
        log = folder / f"{recipe.folder}.log"
        made = _run_alone(log, _make_graph, recipe, bundle, tuple(clips), target, key)
        if isinstance(made, _Failure):
            return MissingPeer(recipe.name, made.reason)
    tools = ", ".join(f"{package} {number}" for package, number in versions.items())
    return Peer(
        recipe.name,
        f"{recipe.how} ({tools})",
        "INT8",
        recipe.runtime,
        target / recipe.graph,
        recipe.settings,
        key=key,
    )


def _missing(packages: Sequence[str]) -> str | None:
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return None
    names = [name.replace("_", "-") for name in missing]
    return f"{', '.join(names)} not installed: pip install {' '.join(names)}"


def _version(package: str) -> str:
    try:
        return version(package)  # takes an underscore for a hyphen
    except PackageNotFoundError:  # installed under another name, as onnxruntime-gpu is
        return "of another name"


def _is_made(folder: Path, key: str) -> bool:
    try:
        document = read_description(folder, _KIND)
        check_files(folder, document["files"], _KIND)
    except EngineError:
        return False
    return bool(document["key"] == key)


def _make_graph(
    recipe: Recipe, bundle: Bundle, clips: Sequence[LabelledClip], target: Path, key: str
) -> None:
    with new_described_folder(target, _KIND, {"key": key}, force=True) as folder:
        recipe.make(bundle, clips, folder / recipe.graph)


# Name, type, its bytes, and how. Compiling for each length would cost minutes, so none is compiled.
_TORCH_PEERS = (
    ("torch fp32", FLOAT32, FLOAT_PRECISION, 4, "the checkpoint under inference_mode, eager, sdpa"),
    ("torch bf16", BFLOAT16, "bf16", 2, "the same with weights and activations in bfloat16"),
)


def _torch_peers(bundle: Bundle, folder: Path, threads: int | None) -> list[Peer | MissingPeer]:
    checked = _checked_torch(bundle, folder / "torch.log", threads)
    if isinstance(checked, _Failure):
        return [MissingPeer(name, checked.reason) for name, *_ in _TORCH_PEERS]
    checkpoint, weights = checked
    return [
        Peer(
            name,
            f"{how} (torch {_version('torch')}, transformers {_version('transformers')})",
            precision,
            TORCH,
            settings={"checkpoint": checkpoint, "dtype": dtype},
            weight_bytes=weights * bytes_each,
        )
        for name, dtype, precision, bytes_each, how in _TORCH_PEERS
    ]


def _checked_torch(bundle: Bundle, log: Path, threads: int | None) -> tuple[str, int] | _Failure:
    if reason := _missing(_TORCH_PACKAGES):
        return _Failure(reason)
    return _run_alone(log, _check_torch, bundle, threads)


def _check_torch(bundle: Bundle, threads: int | None) -> tuple[str, int]:
    checkpoint = local_checkpoint(bundle)
    return checkpoint, check_torch(bundle, checkpoint, threads)


def open_peer(
    peer: Peer, bundle: Bundle, threads: int | None, profile_to: Path | None = None
) -> Session:
    """Return a session that takes the bundle's feeds; raises EngineError, CheckpointError.

    With `profile_to`, ONNX Runtime times every node, as `open_session` has it.
    """
    if peer.runtime == TORCH:
        return TorchSession(peer.settings["checkpoint"], peer.settings["dtype"], threads)
    if peer.path is None or not peer.path.is_file():
        raise EngineError(f"{peer.path}: the graph of {peer.name} is gone; make the peers again")
    if peer.runtime == OPENVINO:
        return OpenVinoSession(peer.path, peer.settings, threads)
    return OnnxRuntimeSession(peer.path, session_options(threads, profile_to))


def _run_alone(log: Path, task: Callable[..., Result], *arguments: object) -> Result | _Failure:
    """Return what `task` returns in a process of its own, whose output goes to the file `log`.

    Not in a pool, which would wait for the task to end where this process is interrupted.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_answer, args=(theirs, log, task, arguments))
    with out_of_reach_of_interrupts():
        process.start()
    theirs.close()
    try:
        answer: Result | _Failure = ours.recv()
        return answer
    except EOFError:
        return _Failure(f"its process was killed, most likely for want of memory (see {log})")
    finally:
        process.kill()
        process.join()
        ours.close()


def _send_answer(
    to_parent: Connection, log: Path, task: Callable[..., Result], arguments: Sequence[object]
) -> None:
    to_parent.send(_attempt(log, task, arguments))


def _attempt(
    log: Path, task: Callable[..., Result], arguments: Sequence[object]
) -> Result | _Failure:
    # Errors of other packages may not survive the way to another process, so a line is sent.
    _redirect_output(log)
    _limit_memory()
    try:
        return task(*arguments)
    except MemoryError:
        traceback.print_exc()
        return _Failure("ran out of memory; free some, or give fewer or shorter clips")
    except Exception as error:  # anybody's
        traceback.print_exc()
        reason = one_line(error)[:300]
        return _Failure(reason or type(error).__name__)


def _redirect_output(log: Path) -> None:
    # By descriptor: some of what the packages say comes from C++.
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _limit_memory() -> None:
    """Make this process run out of memory before the machine does, where it is Linux."""
    if sys.platform != "linux":
        return
    import resource

    # Where it still comes to killing, this process is the one to go.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    if free is not None:
        limit = int(free) * _KIB
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most != resource.RLIM_INFINITY:
            limit = min(limit, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
