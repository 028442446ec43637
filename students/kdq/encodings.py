"""What the frozen encoder makes of each clip, computed once and kept on disk.

A clip is heard in a few fixed variants. The first is as recorded, in the others bands and moments
are masked (SpecAugment). The last fills a whole chunk, as in use; the others have 1 to 4 s of
silence behind them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from speechquant.core.files import storage_errors
from speechquant.training.batches import in_rows
from speechquant.training.run import fast_products, multiplies_bfloat16
from speechquant.training.samples import SAMPLE_RATE_HZ, Sample, Sets, shares_of
from speechquant.training.whisper import encode, log_mels

if TYPE_CHECKING:
    import torch

_HOP_SAMPLES = 160
# SpecAugment's policy "LD" on 80 bins, its masks of time in hops.
_MASKS, _MOST_BINS_OF_80, _MOST_HOPS = 2, 27, 100
_MASK_BINS = 80
_LEAST_SILENCE_SAMPLES = SAMPLE_RATE_HZ
# Clips of one padded length make a batch without a mask over their ends.
_LENGTH_STEP_SAMPLES = 3 * SAMPLE_RATE_HZ
_POOL = 2_000


@dataclass(frozen=True)
class HeardClip:
    """A clip in one of its variants."""

    sample: Sample
    samples: int
    is_masked: bool
    variant: int = 0


def in_use(sample: Sample, chunk_samples: int) -> HeardClip:
    """Return a clip as a recognizer hears it: in a whole chunk."""
    return HeardClip(sample, chunk_samples, is_masked=False)


def heard_as(sample: Sample, variant: int, variants: int, chunk_samples: int) -> HeardClip:
    """Return one of the variants of a clip."""
    is_whole = variant == variants - 1
    steps = -(-(len(sample.wave) + _LEAST_SILENCE_SAMPLES) // _LENGTH_STEP_SAMPLES)
    samples = chunk_samples if is_whole else min(steps * _LENGTH_STEP_SAMPLES, chunk_samples)
    return HeardClip(sample, samples, variant > 0, variant)


def clip_batches(
    sets: Sets, batch_seconds: float, variants: int, chunk_samples: int, rng: random.Random
) -> Iterator[list[HeardClip]]:
    """Yield batches of one padded length for ever, the sets mixed by their shares."""
    shares = shares_of(sets)
    while True:
        groups: dict[int, list[HeardClip]] = {}
        for _ in range(_POOL):
            sample = rng.choice(rng.choices(sets, shares)[0][1])
            clip = heard_as(sample, rng.randrange(variants), variants, chunk_samples)
            groups.setdefault(clip.samples, []).append(clip)
        found = []
        for samples, clips in groups.items():
            count = max(1, int(batch_seconds * SAMPLE_RATE_HZ) // samples)
            found += [clips[first : first + count] for first in range(0, len(clips), count)]
        rng.shuffle(found)
        yield from found


def masked(features: torch.Tensor, hops: int, rng: np.random.Generator) -> torch.Tensor:
    """Return features [1, bins, hops] with bands and moments of the clip at their mean."""
    found, mean = features.clone(), float(features[..., :hops].mean())
    bins = features.shape[1]
    most_bins = _MOST_BINS_OF_80 * bins // _MASK_BINS
    for _ in range(_MASKS):
        width = int(rng.integers(0, most_bins + 1))
        first = int(rng.integers(0, bins - width + 1))
        found[:, first : first + width] = mean
        width = int(rng.integers(0, min(_MOST_HOPS, hops) + 1))
        first = int(rng.integers(0, hops - width + 1))
        found[..., first : first + width] = mean
    return found


class Encodings:
    """The encoder's outputs in a folder, which runs of one teacher may share."""

    def __init__(self, folder: Path, model: Any, device: str) -> None:
        import torch
        from transformers import WhisperFeatureExtractor

        self._folder, self._model, self._device = folder, model, device
        self._kind = device.partition(":")[0]
        bins = model.config.num_mel_bins
        filters = WhisperFeatureExtractor(bins).mel_filters
        self._filters = torch.from_numpy(filters).float().to(device)
        weights = hashlib.sha256()
        for value in model.model.encoder.state_dict().values():
            weights.update(value.detach().cpu().contiguous().numpy().tobytes())
        products = "bfloat16" if multiplies_bfloat16(self._kind) else "float32"
        self._encoder_key = f"{weights.hexdigest()} {products}"

    def together(self, clips: list[HeardClip]) -> torch.Tensor:
        """Return the encoder's outputs of clips of one length, [clips, positions, width]."""
        import torch

        rows = np.stack([self._kept(clip) for clip in clips])
        return torch.from_numpy(rows).to(self._device).float()

    def _kept(self, clip: HeardClip) -> NDArray[np.float16]:
        key = self._key_of(clip)
        path = self._folder / key[:2] / f"{key}.npy"
        if path.is_file():
            kept: NDArray[np.float16] = np.load(path, allow_pickle=False)
            return kept
        made = self._made(clip, int(key[:16], 16))
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{uuid4().hex}.tmp")
            with partial.open("wb") as file:
                np.save(file, made)
            partial.replace(path)
        return made

    def _key_of(self, clip: HeardClip) -> str:
        masks = clip.variant if clip.is_masked else 0
        facts = f"{self._encoder_key} {clip.samples} {masks} "
        return hashlib.sha256(facts.encode() + clip.sample.wave.tobytes()).hexdigest()

    def _made(self, clip: HeardClip, seed: int) -> NDArray[np.float16]:
        import torch

        rows = torch.from_numpy(in_rows([clip.sample.floats], clip.samples)).to(self._device)
        with torch.no_grad(), fast_products(self._kind):
            features = log_mels(rows, self._filters)
            if clip.is_masked:
                hops = max(1, len(clip.sample.wave) // _HOP_SAMPLES)
                features = masked(features, hops, np.random.default_rng(seed))
            states: torch.Tensor = encode(self._model, features)[0]
        rounded: NDArray[np.float16] = states.half().cpu().numpy()
        return rounded
