"""Checkpoint to ONNX bundle: `export(model, out)`."""

from speechquant.exporter.export import export

__all__ = ["export"]
