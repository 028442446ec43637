"""Encoder-decoder models: three graphs, and how features and tokens are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from speechquant.core.graphs import Layered
from speechquant.core.plain import require_positive
from speechquant.core.specs import GraphSpec

TASK = "seq2seq"
ENCODER, PREFILL, STEP = "encoder", "decoder_prefill", "decoder_step"
GRAPHS = (ENCODER, PREFILL, STEP)
ALIGN = "decoder_align"  # a fourth, for the times of words; bundles have it where it was asked for
DECODERS = (PREFILL, STEP, ALIGN)
TOKENIZER_FILE = "tokenizer.json"
DECODER_DATA = "decoder.onnx.data"  # the weights of all of the decoder's graphs
# Layers with ranges so wide that Wagner et al. leave them in float: the output projection of the
# encoder's last attention, and what reads the encoder's final layer norm.
LAST_PROJECTION, CROSS = "encoder.last_projection", "cross"


@dataclass(frozen=True)
class LogMelSpec:
    """How samples become log-mel features; a chunk is what the encoder was trained on."""

    mel_bins: int
    fft_samples: int
    hop_samples: int
    chunk_samples: int

    def __post_init__(self) -> None:
        require_positive(
            mel_bins=self.mel_bins,
            fft_samples=self.fft_samples,
            hop_samples=self.hop_samples,
            chunk_samples=self.chunk_samples,
        )

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

    @property
    def start_of_previous(self) -> int | None:
        """The token of text that was said before, the one in front of `no_speech`."""
        return None if self.no_timestamps is None else self.no_timestamps - 2


@dataclass(frozen=True)
class Seq2SeqSpec(Layered):
    """What the graphs are and what they take."""

    labels_file: ClassVar[str] = TOKENIZER_FILE
    text_files: ClassVar[tuple[str, ...]] = (TOKENIZER_FILE,)
    float_layers: ClassVar[tuple[str, ...]] = (LAST_PROJECTION, CROSS)

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

    def __post_init__(self) -> None:
        require_positive(sample_rate_hz=self.sample_rate_hz)
        if set(self.graphs) - {ALIGN} != set(GRAPHS):
            raise ValueError(
                f"graphs are {', '.join(self.graphs)}; they must be {', '.join(GRAPHS)}, and "
                f"{ALIGN} may be there"
            )

    @property
    def gives_words(self) -> bool:
        """Whether there is a graph for the times of words."""
        return ALIGN in self.graphs

    @property
    def chunk_seconds(self) -> float:
        """The seconds of a chunk."""
        return self.features.chunk_samples / self.sample_rate_hz

    @property
    def seconds_per_position(self) -> float:
        """The seconds of one position of the encoder, and so of one step of the timestamps."""
        # The encoder's second convolution halves the frames.
        return 2 * self.features.hop_samples / self.sample_rate_hz

    @property
    def layers(self) -> dict[str, str]:
        """Tensor -> layer of all graphs; the decoder's graphs share their names."""
        return self._merged(lambda graph: graph.layers)

    @property
    def attention(self) -> dict[str, str]:
        """Tensor -> layer of what attention multiplies by each other, of all graphs."""
        return self._merged(lambda graph: graph.attention)

    @property
    def layer_outputs(self) -> dict[str, str]:
        """Tensor -> layer of what each product with weights gives, of all graphs."""
        return self._merged(lambda graph: graph.layer_outputs)

    def _merged(self, of: Callable[[GraphSpec], Mapping[str, str]]) -> dict[str, str]:
        graphs = self.graphs.values()
        return {name: layer for graph in graphs for name, layer in of(graph).items()}

    def reading(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Return what lies between audio, graphs and text: how features and tokens are read."""
        return {
            "sample_rate_hz": self.sample_rate_hz,
            "features": asdict(self.features),
            "generation": asdict(self.generation),
            "tokenizer": files.get(TOKENIZER_FILE),
        }
