"""Whether an exported graph computes what its model computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import ParityError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Logits = NDArray[np.float32]

# Allowed max |ONNX - torch|, per unit of the largest logit where that is above one.
TOLERANCE = 1e-4
# None of these is a length or batch size that was traced.
EXPORT_CASES_SECONDS: tuple[tuple[float, ...], ...] = ((1.0,), (3.1,), (2.3, 1.4, 0.6))


@dataclass(frozen=True)
class ParityCase:
    """A padded batch of noise and the logits that the torch model gives for each clip's frames."""

    seconds: tuple[float, ...]
    waves: NDArray[np.float32]
    lengths: NDArray[np.int64]
    expected: tuple[Logits, ...]


@dataclass(frozen=True)
class ParityResult:
    """How far the graph is from torch on one batch."""

    seconds: tuple[float, ...]
    max_difference: float
    largest_logit: float

    @property
    def is_close(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_difference <= TOLERANCE * max(1.0, self.largest_logit)


def is_padding_exact(config: Any) -> bool:
    """Return whether a clip of the model can be padded without changing what it gives.

    A group norm averages over the whole padded length, and a batch norm before the positional
    convolution moves the padding away from zero.
    """
    return config.model_type == "data2vec-audio" or (
        config.feat_extract_norm == "layer" and not getattr(config, "conv_pos_batch_norm", False)
    )


def make_cases(
    model: PreTrainedModel, sample_rate_hz: int, cases_seconds: Sequence[tuple[float, ...]]
) -> list[ParityCase]:
    """Return batches of noise with the torch model's own logits.

    Where padding is exact the reference is each clip alone, without a mask: the graph must then
    give in a padded batch what torch gives for the clip on its own.
    """
    rng = np.random.default_rng(0)
    return [_make_case(model, sample_rate_hz, seconds, rng) for seconds in cases_seconds]


def _make_case(
    model: PreTrainedModel,
    sample_rate_hz: int,
    seconds: tuple[float, ...],
    rng: np.random.Generator,
) -> ParityCase:
    lengths = np.array([int(second * sample_rate_hz) for second in seconds], np.int64)
    waves = np.zeros((len(lengths), lengths.max()), np.float32)
    for wave, length in zip(waves, lengths, strict=True):
        swell = 1.0 + 0.9 * np.sin(np.arange(length) / (0.1 * sample_rate_hz))
        wave[:length] = rng.standard_normal(length) * swell
    reference = _alone if is_padding_exact(model.config) else _padded
    return ParityCase(seconds, waves, lengths, reference(model, waves, lengths))


def _alone(
    model: PreTrainedModel, waves: NDArray[np.float32], lengths: NDArray[np.int64]
) -> tuple[Logits, ...]:
    import torch

    with torch.inference_mode():
        return tuple(
            model(torch.from_numpy(wave[None, :length].copy())).logits[0].numpy()
            for wave, length in zip(waves, lengths, strict=True)
        )


def _padded(
    model: PreTrainedModel, waves: NDArray[np.float32], lengths: NDArray[np.int64]
) -> tuple[Logits, ...]:
    import torch

    mask = torch.from_numpy((np.arange(waves.shape[1]) < lengths[:, None]).astype(np.int64))
    with torch.inference_mode():
        logits = model(torch.from_numpy(waves), attention_mask=mask).logits.numpy()
    frames = model._get_feat_extract_output_lengths(torch.from_numpy(lengths))  # type: ignore[operator]
    return tuple(row[:count] for row, count in zip(logits, frames.tolist(), strict=True))


def measure(model_path: Path, cases: Sequence[ParityCase]) -> list[ParityResult]:
    """Run the graph on the cases with ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    results = []
    for case in cases:
        feeds = {"input_values": case.waves, "input_lengths": case.lengths}
        (logits,) = session.run(None, feeds)
        results.append(
            ParityResult(
                seconds=case.seconds,
                max_difference=_largest(
                    row[: len(expected)] - expected
                    for row, expected in zip(logits, case.expected, strict=True)
                ),
                largest_logit=_largest(case.expected),
            )
        )
    return results


def _largest(arrays: Iterable[Logits]) -> float:
    # NumPy's max and not Python's, which passes over a NaN.
    return float(np.max([np.max(np.abs(array)) for array in arrays]))


def require_close(results: Sequence[ParityResult], source: str) -> None:
    """Raise ParityError for the first batch on which the graph is off."""
    for result in results:
        if not result.is_close:
            raise ParityError(
                f"{source}: the exported graph is off by {result.max_difference:.2g} from torch on "
                f"a batch of {list(result.seconds)} s (largest logit {result.largest_logit:.2g}); "
                "nothing was written; please report the checkpoint"
            )
