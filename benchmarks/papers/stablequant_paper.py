"""The StableQuant paper's own figures (Hong et al.), WER in % on LibriSpeech test-clean."""

from __future__ import annotations

# Table I, of percentile: blocks only, all layers.
TABLE_1: dict[str, dict[int, tuple[object, object]]] = {
    "hubert": {16: (2.16, 2.17), 8: (2.21, 3.03), 6: (2.55, 96.6), 4: (98.08, 99.98)},
    "wav2vec2": {16: (2.78, 2.82), 8: (2.78, 95.28), 6: (2.98, 99.96), 4: (61.03, ">100")},
}
FLOAT = {"hubert": 2.16, "wav2vec2": 2.78}
TABLE_2 = {  # percentile, mse, entropy, StableQuant, clipped convolutions, p
    "hubert": {
        16: (2.16, 2.16, 2.17, 2.16, "none", 0.0),
        8: (2.52, 2.56, 2.65, 2.35, "conv 0-2", 0.2),
        6: (55.55, 6.33, 10.84, 3.98, "conv 0-2", 0.16),
        4: (">100", 100, 93.41, 89.83, "conv 0-2", 0.0),
    },
    "wav2vec2": {
        16: (2.78, 2.78, 2.82, 2.78, "none", 0.0),
        8: (3.45, 5.18, 5.21, 3.07, "conv 0-3", 0.11),
        6: (99.95, 60.06, 42.92, 6.10, "conv 0-3", 0.21),
        4: (">100", 99.43, 99.95, 99.27, "conv 0-3", 0.05),
    },
}
TABLE_3 = (
    ("HuBERT-Base, float", "491 MB", 6.33),
    ("HuBERT-Large, float", "1205 MB", 2.16),
    ("HuBERT-Large, AdaRound W8A8", "-", 2.66),
    ("HuBERT-Large, StableQuant W8A8", "353 MB", 2.35),
    ("HuBERT-Large, quantization-aware training W8A8", "357 MB", 2.34),
)


def family_of(architecture: str) -> str:
    """Return which of the paper's two models one of this architecture is compared with."""
    return "hubert" if "hubert" in architecture.lower() else "wav2vec2"
