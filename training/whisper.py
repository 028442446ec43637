"""A Whisper's features and its encoder in torch, for what is shorter than a chunk too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HOP_SAMPLES, _FFT_SAMPLES = 160, 400
# The encoder's second convolution halves the frames.
POSITION_SAMPLES = 2 * _HOP_SAMPLES
# What is so many decades of power below the loudest moment is cut off, as the extractor does.
_RANGE_DECADES = 8.0


def whole_positions(samples: int) -> int:
    """Return the samples of as many of the encoder's positions as hold `samples`."""
    return -(-samples // POSITION_SAMPLES) * POSITION_SAMPLES


def log_mels(
    waves: torch.Tensor, filters: torch.Tensor, louder: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Return what WhisperFeatureExtractor makes of waves [clips, samples].

    They are parts of audio whose loudest moment is `louder` decades above theirs.
    """
    import torch

    window = torch.hann_window(_FFT_SAMPLES, device=waves.device)
    spectra = torch.stft(waves, _FFT_SAMPLES, _HOP_SAMPLES, window=window, return_complex=True)
    powers = filters.T @ (spectra[..., :-1].abs() ** 2)
    levels = torch.clamp(powers, min=1e-10).log10()
    loudest = levels.amax(dim=(1, 2), keepdim=True) + louder
    levels = torch.maximum(levels, loudest - _RANGE_DECADES)
    return (levels + 4.0) / 4.0


def encode(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Return the encoder's output for features of any length up to a chunk."""
    from torch.nn.functional import gelu

    encoder = model.model.encoder
    hidden = gelu(encoder.conv2(gelu(encoder.conv1(features)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        given = layer(hidden, None)
        hidden = given[0] if isinstance(given, tuple) else given
    normed: torch.Tensor = encoder.layer_norm(hidden)
    return normed
