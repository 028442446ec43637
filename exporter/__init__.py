"""Checkpoint to ONNX bundle: `export(model, out)`."""

from speechquant.exporter.ctc import export

__all__ = ["export"]
