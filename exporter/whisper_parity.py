"""Whether the graphs of a Whisper model compute what torch does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import ParityError
from speechquant.core.seq2seq import ALIGN, ENCODER, PREFILL, STEP
from speechquant.core.specs import graph_file
from speechquant.exporter.parity import TOLERANCE
from speechquant.exporter.whisper_checkpoints import cache_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arrays = Mapping[str, NDArray[Any]]
# Clips and tokens of the prompt; none of these is a batch or length that was traced.
CASES = ((1, 4), (3, 2))
_STEPS = 2


@dataclass(frozen=True)
class WhisperCase:
    """A batch of noise and all that torch makes of it, by graph and output.

    `steps` has one entry for each token after the prompt. `align` is of the prompt, None where
    nothing is aligned.
    """

    features: NDArray[np.float32]
    prompt: NDArray[np.int64]
    next_tokens: NDArray[np.int64]
    encoder: Arrays
    prefill: Arrays
    steps: tuple[Arrays, ...]
    align: Arrays | None = None


@dataclass(frozen=True)
class WhisperParity:
    """How far one output of a graph is from torch on one batch."""

    graph: str
    output: str
    batch: int
    max_difference: float
    largest: float

    @property
    def is_close(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_difference <= TOLERANCE * max(1.0, self.largest)


def make_whisper_cases(
    model: PreTrainedModel, start: int, alignment_heads: Sequence[tuple[int, int]] = ()
) -> list[WhisperCase]:
    """Return batches of noise with what torch gives for the encoder, the prompt and two steps.

    With `alignment_heads`, layers and heads, also the attention that these pay to the encoder.
    """
    rng = np.random.default_rng(0)
    cases = [_make_case(model, start, batch, prompt, rng) for batch, prompt in CASES]
    return [_aligned(model, case, alignment_heads) for case in cases] if alignment_heads else cases


def _aligned(
    model: PreTrainedModel, case: WhisperCase, heads: Sequence[tuple[int, int]]
) -> WhisperCase:
    import torch

    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")  # no other gives the weights
    try:
        with torch.inference_mode():
            given = model(
                encoder_outputs=(torch.from_numpy(case.encoder["hidden"]),),
                decoder_input_ids=torch.from_numpy(case.prompt),
                output_attentions=True,
            )
    finally:
        model.set_attn_implementation(usual)
    attention = np.stack([given.cross_attentions[at][:, head].numpy() for at, head in heads], 1)
    return replace(case, align={"attention": attention, "logits": given.logits[:, -1:].numpy()})


def _make_case(
    model: PreTrainedModel, start: int, batch: int, prompt: int, rng: np.random.Generator
) -> WhisperCase:
    import torch

    config = model.config
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    features = rng.normal(0.0, 0.7, shape).astype(np.float32)
    tokens = rng.integers(0, config.vocab_size, (batch, prompt + _STEPS))
    tokens[:, 0] = start
    with torch.inference_mode():
        encoded = model.model.encoder(torch.from_numpy(features))
        outputs: list[Arrays] = []
        past, cache = None, cache_name(model)
        pieces = [tokens[:, :prompt], *(tokens[:, [prompt + step]] for step in range(_STEPS))]
        for piece in pieces:
            given = model(
                encoder_outputs=encoded,
                decoder_input_ids=torch.from_numpy(piece),
                use_cache=True,
                **{cache: past},
            )
            past = given[cache]
            outputs.append({"logits": given.logits.numpy(), **_caches(past)})
    return WhisperCase(
        features,
        tokens[:, :prompt],
        tokens[:, prompt:],
        {"hidden": encoded.last_hidden_state.numpy()},
        outputs[0],
        tuple(outputs[1:]),
    )


def _caches(past: Any) -> dict[str, NDArray[np.float32]]:
    """Return copies: the next step grows the caches in place."""
    return {
        f"{kind}_{what}.{layer}": getattr(row, what).numpy().copy()
        for kind, cache in (
            ("self", past.self_attention_cache),
            ("cross", past.cross_attention_cache),
        )
        for layer, row in enumerate(cache.layers)
        for what in ("keys", "values")
    }


def measure_whisper(folder: Path, cases: Sequence[WhisperCase]) -> list[WhisperParity]:
    """Run the graphs in `folder` on the cases with ONNX Runtime on the CPU.

    Each graph is fed what the one before gave, as it will be in use.
    """
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(
            folder / graph_file(name), providers=["CPUExecutionProvider"]
        )
        for name in (ENCODER, PREFILL, STEP, ALIGN)
        if (folder / graph_file(name)).is_file()
    }

    def run(name: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        outputs = [output.name for output in sessions[name].get_outputs()]
        return dict(zip(outputs, sessions[name].run(outputs, dict(feeds)), strict=True))

    results: list[WhisperParity] = []
    for case in cases:
        encoded = run(ENCODER, {"features": case.features})
        results += _compared(ENCODER, encoded, case.encoder)
        found = run(PREFILL, {"tokens": case.prompt, "hidden": encoded["hidden"]})
        results += _compared(PREFILL, found, case.prefill)
        if case.align is not None:
            aligned = run(ALIGN, {"tokens": case.prompt, "hidden": encoded["hidden"]})
            results += _compared(ALIGN, aligned, case.align)
        caches = {name: value for name, value in found.items() if name != "logits"}
        for step, expected in enumerate(case.steps):
            found = run(STEP, {"tokens": case.next_tokens[:, [step]], **caches})
            grown = {name.removeprefix("new_"): value for name, value in found.items()}
            results += _compared(STEP, grown, expected)
            caches.update({name: value for name, value in grown.items() if name != "logits"})
    return results


def _compared(graph: str, found: Arrays, expected: Arrays) -> list[WhisperParity]:
    return [
        WhisperParity(
            graph,
            name,
            len(value),
            # NumPy's max and not Python's, which passes over a NaN.
            float(np.max(np.abs(value - expected[name]))),
            float(np.max(np.abs(expected[name]))),
        )
        for name, value in found.items()
    ]


def require_whisper_close(results: Sequence[WhisperParity], source: str) -> None:
    """Raise ParityError for the first output that is off."""
    for result in results:
        if not result.is_close:
            raise ParityError(
                f"{source}: {result.output} of the exported {result.graph} is off by "
                f"{result.max_difference:.2g} from torch on a batch of {result.batch} (largest "
                f"{result.largest:.2g}); nothing was written; please report the checkpoint"
            )
