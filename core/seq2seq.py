"""Bundles of encoder-decoder models: three graphs, and how features and tokens are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechquant.core.artifact_folders import (
    check_files,
    digest_of,
    read_description,
)
from speechquant.core.bundles import (
    BUNDLE_KIND,
    DESCRIPTION,
    Bundle,
    TensorSpec,
    load_bundle,
    tensor_specs_of,
)
from speechquant.core.errors import BundleError
from speechquant.core.graphs import GraphSource, Layered

TASK = "seq2seq"
ENCODER, PREFILL, STEP = "encoder", "decoder_prefill", "decoder_step"
GRAPHS = (ENCODER, PREFILL, STEP)
TOKENIZER_FILE = "tokenizer.json"
DECODER_DATA = "decoder.onnx.data"  # the weights of both of the decoder's graphs
# Layers with ranges so wide that Wagner et al. leave them in float: the output projection of the
# encoder's last attention, and what reads the encoder's final layer norm.
LAST_PROJECTION, CROSS = "encoder.last_projection", "cross"


def is_graph_file(name: str) -> bool:
    """Return whether a file of a bundle holds a graph or its weights."""
    return ".onnx" in name


def graph_file(name: str) -> str:
    """Return the file of one of GRAPHS."""
    return f"{name}.onnx"


@dataclass(frozen=True)
class GraphSpec(Layered):
    """One graph; `layers` and `attention` as a ModelSpec has them, the latter always empty yet."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: Mapping[str, str]
    attention: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LogMelSpec:
    """How samples become log-mel features; a chunk is what the encoder was trained on."""

    mel_bins: int
    fft_samples: int
    hop_samples: int
    chunk_samples: int

    @property
    def chunk_frames(self) -> int:
        """The feature frames of a chunk."""
        return self.chunk_samples // self.hop_samples


@dataclass(frozen=True)
class GenerationSpec:
    """The token numbers that steer decoding; None, or empty, where the checkpoint has none.

    Tokens below `end` are text. Timestamps are tokens from `first_timestamp` on, the positions of
    the encoder apart. `max_tokens` counts the prompt, `max_new_tokens` does not. `language` is what
    the checkpoint takes where none is given, in place of detecting it, and `task` likewise.
    """

    start: int
    end: int
    max_tokens: int
    no_timestamps: int | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    latest_first_timestamp: int | None = None
    language: str | None = None
    task: str | None = None
    max_new_tokens: int | None = None

    def room_after(self, prompt_tokens: int) -> int:
        """Return how many tokens may follow a prompt."""
        room = self.max_tokens - prompt_tokens
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)

    @property
    def first_timestamp(self) -> int | None:
        """The token of 0.00 s."""
        return None if self.no_timestamps is None else self.no_timestamps + 1

    @property
    def no_speech(self) -> int | None:
        """The token of a chunk without speech, the one before `no_timestamps`."""
        return None if self.no_timestamps is None else self.no_timestamps - 1


@dataclass(frozen=True)
class Seq2SeqSpec(Layered):
    """What the graphs are and what they take."""

    architecture: str
    task: str
    precision: str
    sample_rate_hz: int
    attention_heads: int
    decoder_layers: int
    features: LogMelSpec
    generation: GenerationSpec
    graphs: Mapping[str, GraphSpec]
    notes: tuple[str, ...] = ()

    @property
    def seconds_per_position(self) -> float:
        """The seconds of one position of the encoder, and so of one step of the timestamps."""
        # The encoder's second convolution halves the frames.
        return 2 * self.features.hop_samples / self.sample_rate_hz

    @property
    def layers(self) -> dict[str, str]:
        """Tensor -> layer of all graphs; the decoder's two graphs share their names."""
        return self._merged(lambda graph: graph.layers)

    @property
    def attention(self) -> dict[str, str]:
        """Tensor -> layer of what attention multiplies by each other, of all graphs."""
        return self._merged(lambda graph: graph.attention)

    def _merged(self, of: Callable[[GraphSpec], Mapping[str, str]]) -> dict[str, str]:
        graphs = self.graphs.values()
        return {name: layer for graph in graphs for name, layer in of(graph).items()}


@dataclass(frozen=True)
class GraphPart:
    """One graph of a bundle, as quantization takes it."""

    folder: Path
    name: str
    spec: GraphSpec
    precision: str

    @property
    def model_path(self) -> Path:
        """The graph."""
        return self.folder / graph_file(self.name)


@dataclass(frozen=True)
class Seq2SeqBundle:
    """A bundle on disk whose files have been checked."""

    folder: Path
    spec: Seq2SeqSpec
    files: Mapping[str, str]
    made_from: Mapping[str, Any] = field(default_factory=dict)

    def graph_path(self, name: str) -> Path:
        """Return the file of one of GRAPHS."""
        return self.folder / graph_file(name)

    def part(self, name: str) -> GraphPart:
        """Return one of GRAPHS."""
        return GraphPart(self.folder, name, self.spec.graphs[name], self.spec.precision)

    @property
    def reading_sha256(self) -> str:
        """The hash of what lies between audio, graphs and text."""
        return digest_of(
            {
                "sample_rate_hz": self.spec.sample_rate_hz,
                "features": asdict(self.spec.features),
                "generation": asdict(self.spec.generation),
                "tokenizer": self.files.get(TOKENIZER_FILE),
            }
        )

    @property
    def model_sha256(self) -> str:
        """The hash of the graphs and their weights, which scale tables name."""
        return digest_of(
            {name: digest for name, digest in self.files.items() if is_graph_file(name)}
        )

    @property
    def size_bytes(self) -> int:
        """The bytes of all files the description lists."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def is_seq2seq(folder: Path) -> bool:
    """Return whether the bundle in `folder` holds an encoder-decoder model; raises BundleError."""
    if not (folder / DESCRIPTION).is_file():
        return False
    spec = read_description(folder, BUNDLE_KIND).get("spec")
    return isinstance(spec, dict) and spec.get("task") == TASK


def load_seq2seq_bundle(folder: Path) -> Seq2SeqBundle:
    """Return the bundle in `folder`, every file checked against its hash; raises BundleError."""
    document = read_description(folder, BUNDLE_KIND)
    try:
        files, spec = dict(document["files"]), seq2seq_spec_of(document["spec"])
        made_from = dict(document["made_from"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{folder / DESCRIPTION}: not as this version writes it ({error}); {BUNDLE_KIND.mend}"
        ) from error
    needed = dict.fromkeys([*map(graph_file, GRAPHS), TOKENIZER_FILE], "")
    check_files(folder, {**needed, **files}, BUNDLE_KIND)
    return Seq2SeqBundle(folder, spec, files, made_from)


def seq2seq_spec_of(document: Mapping[str, Any]) -> Seq2SeqSpec:
    """Return a spec from the plain values that `asdict` made of it."""
    generation = document["generation"]
    return Seq2SeqSpec(
        **{
            **document,
            "features": LogMelSpec(**document["features"]),
            "generation": GenerationSpec(
                **{
                    **generation,
                    "suppressed": tuple(generation["suppressed"]),
                    "suppressed_first": tuple(generation["suppressed_first"]),
                }
            ),
            "graphs": {name: _graph_of(row) for name, row in document["graphs"].items()},
            "notes": tuple(document["notes"]),
        }
    )


def _graph_of(document: Mapping[str, Any]) -> GraphSpec:
    return GraphSpec(
        **{
            **document,
            "inputs": tensor_specs_of(document["inputs"]),
            "outputs": tensor_specs_of(document["outputs"]),
        }
    )


def load_any_bundle(folder: Path) -> Bundle | Seq2SeqBundle:
    """Return the bundle in `folder`, of whichever family; raises BundleError."""
    return load_seq2seq_bundle(folder) if is_seq2seq(folder) else load_bundle(folder)


def parts_of(bundle: Bundle | Seq2SeqBundle) -> list[GraphSource]:
    """Return the graphs of a bundle."""
    if isinstance(bundle, Seq2SeqBundle):
        return [bundle.part(name) for name in GRAPHS]
    return [bundle]
