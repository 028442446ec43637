"""Models with one label a frame: one graph, and how samples and labels are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from speechquant.core.graphs import Layered
from speechquant.core.plain import require_positive
from speechquant.core.specs import GraphSpec, TensorSpec, graph_file

CTC = "ctc"  # the task
MODEL = "model"  # the graph
MODEL_FILE = graph_file(MODEL)
VOCABULARY_FILE = "vocab.json"
# The files of a checkpoint that say how audio and labels are read, where it has them.
TEXT_FILES = (
    VOCABULARY_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)


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
class CtcSpec(Layered):
    """What the graph is and what it takes.

    `layers` maps every activation tensor that feeds a constant-weight Conv, MatMul or Gemm to the
    layer it belongs to, in the order of the graph; `attention` maps those that attention multiplies
    by each other, `layer_outputs` what each Conv, MatMul or Gemm gives; both are empty where the
    graph does not name them. `padding_exact` says whether a padded batch gives each clip what the
    clip gets alone.
    """

    labels_file: ClassVar[str] = VOCABULARY_FILE
    text_files: ClassVar[tuple[str, ...]] = TEXT_FILES
    float_layers: ClassVar[tuple[str, ...]] = ()
    chunk_seconds: ClassVar[None] = None

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
    layer_outputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive(
            sample_rate_hz=self.sample_rate_hz,
            conv_kernels=self.conv_kernels,
            conv_strides=self.conv_strides,
        )
        if len(self.conv_kernels) != len(self.conv_strides):
            raise ValueError("conv_kernels and conv_strides are not as many")

    @property
    def graphs(self) -> dict[str, GraphSpec]:
        """The one graph."""
        maps = self.layers, self.attention, self.layer_outputs
        return {MODEL: GraphSpec(self.inputs, self.outputs, *maps)}

    @property
    def min_samples(self) -> int:
        """The samples that give one frame."""
        return receptive_field(self.conv_kernels, self.conv_strides)

    def frames_of(self, samples: int) -> int:
        """Return the frames that the convolutions make of `samples`."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    def reading(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Return what lies between audio, graph and text: how samples and labels are read."""
        return {
            "sample_rate_hz": self.sample_rate_hz,
            "normalize_waveform": self.normalize_waveform,
            "decoding": asdict(self.decoding),
            "vocabulary": files.get(VOCABULARY_FILE),
        }
