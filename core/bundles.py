"""Bundles: a model as a folder of ONNX graphs, text files and a description that can be checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.artifact_folders import (
    FolderKind,
    check_files,
    digest_of,
    new_described_folder,
    read_description,
)
from speechquant.core.errors import BundleError
from speechquant.core.graphs import Layered, Model

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = "speechquant.bundle/1"
DESCRIPTION = "bundle.json"
ENGINE_DESCRIPTION = "engine.json"
MODEL_FILE = "model.onnx"
VOCABULARY_FILE = "vocab.json"
FLOAT_PRECISION = "fp32"
CTC = "ctc"  # the task of a model with one label a frame
QUANTIZATION_FILE = "quantization.json"  # what a quantization saw and decided
# The files of a checkpoint that say how audio and labels are read, where it has them.
TEXT_FILES = (
    VOCABULARY_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)

BUNDLE_KIND = FolderKind("bundle", DESCRIPTION, FORMAT, "speechquant export", BundleError)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; a dimension is a number, or a name where it varies."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class CtcDecoding:
    """How label numbers become text."""

    blank: int
    word_delimiter: str | None
    skipped: tuple[str, ...] = ()
    lower_case: bool = False


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many samples one frame of stacked convolutions sees."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


@dataclass(frozen=True)
class ModelSpec(Layered):
    """What a graph is and what it takes.

    `layers` maps every activation tensor that feeds a constant-weight Conv, MatMul or Gemm to the
    layer it belongs to, in the order of the graph; `attention` maps those that attention multiplies
    by each other, and is empty where the graph does not name them. `padding_exact` says whether a
    padded batch gives each clip what the clip gets alone.
    """

    architecture: str
    task: str
    precision: str
    sample_rate_hz: int
    normalize_waveform: bool
    padding_exact: bool
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    attention_heads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: Mapping[str, str]
    decoding: CtcDecoding
    notes: tuple[str, ...] = ()
    attention: Mapping[str, str] = field(default_factory=dict)

    @property
    def min_samples(self) -> int:
        """The samples that give one frame."""
        return receptive_field(self.conv_kernels, self.conv_strides)

    def frames_of(self, samples: int) -> int:
        """Return the frames that the convolutions make of `samples`."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked."""

    folder: Path
    spec: ModelSpec
    files: Mapping[str, str]
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_path(self) -> Path:
        """The graph."""
        return self.folder / MODEL_FILE

    @property
    def precision(self) -> str:
        """The precision of the graph."""
        return self.spec.precision

    @property
    def model_sha256(self) -> str:
        """The hash of the graph and its weights, which scale tables name."""
        graph = {name: digest for name, digest in self.files.items() if name.startswith(MODEL_FILE)}
        return digest_of(graph)

    @property
    def reading_sha256(self) -> str:
        """The hash of what lies between audio, graph and text: how samples and labels are read."""
        return digest_of(
            {
                "sample_rate_hz": self.spec.sample_rate_hz,
                "normalize_waveform": self.spec.normalize_waveform,
                "decoding": asdict(self.spec.decoding),
                "vocabulary": self.files.get(VOCABULARY_FILE),
            }
        )

    @property
    def size_bytes(self) -> int:
        """The bytes of all files the description lists."""
        return sum((self.folder / name).stat().st_size for name in self.files)


@contextmanager
def new_bundle(
    target: Path, spec: DataclassInstance, made_from: Mapping[str, Any], *, force: bool = False
) -> Iterator[Path]:
    """Yield a folder for the bundle's files; when the block ends it is described, hashed and moved.

    Raises OutputExistsError or StorageError; then nothing of the bundle is left behind.
    """
    document = {"spec": asdict(spec), "made_from": dict(made_from)}
    with new_described_folder(target, BUNDLE_KIND, document, force=force) as folder:
        yield folder


def tensor_specs_of(rows: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return tensors from the plain values that `asdict` made of them."""
    return tuple(TensorSpec(row["name"], row["dtype"], tuple(row["dims"])) for row in rows)


def spec_of(document: Mapping[str, Any]) -> ModelSpec:
    """Return a spec from the plain values that `asdict` made of it."""
    decoding = document["decoding"]
    return ModelSpec(
        **{
            **document,
            "conv_kernels": tuple(document["conv_kernels"]),
            "conv_strides": tuple(document["conv_strides"]),
            "inputs": tensor_specs_of(document["inputs"]),
            "outputs": tensor_specs_of(document["outputs"]),
            "decoding": CtcDecoding(**{**decoding, "skipped": tuple(decoding["skipped"])}),
            "notes": tuple(document["notes"]),
        }
    )


def load_bundle(folder: Path) -> Bundle:
    """Return the bundle in `folder`, every file checked against its hash; raises BundleError."""
    if (folder / ENGINE_DESCRIPTION).is_file():
        raise BundleError(f"{folder}: is an engine; give the bundle that it was built from")
    document = read_description(folder, BUNDLE_KIND)
    task = document["spec"].get("task") if isinstance(document.get("spec"), dict) else None
    if task not in (None, CTC):
        raise BundleError(
            f"{folder}: a bundle of task {task}, which this step does not take yet; give one of a "
            f"{CTC} model"
        )
    try:
        files, spec = dict(document["files"]), spec_of(document["spec"])
        made_from = dict(document["made_from"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{folder / DESCRIPTION}: not as this version writes it ({error}); {BUNDLE_KIND.mend}"
        ) from error
    # The two that every bundle of a CTC model is made of.
    check_files(folder, {MODEL_FILE: "", VOCABULARY_FILE: "", **files}, BUNDLE_KIND)
    return Bundle(folder, spec, files, made_from)


def require_float(bundle: Model) -> None:
    """Raise BundleError where the bundle is quantized already."""
    if bundle.spec.precision != FLOAT_PRECISION:
        raise BundleError(
            f"{bundle.folder}: already quantized ({bundle.spec.precision}); "
            "give the float bundle that it was made from"
        )
