"""Whisper-KDQ (Shao et al. 2023): distillation and quantization that choose each other's layers."""
