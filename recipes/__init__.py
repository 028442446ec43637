"""The steps strung together: `calibrate`, `quantize`, `evaluate`."""

from speechquant.recipes.calibrate import CalibrationRequest, calibrate
from speechquant.recipes.data import ClipList, DataSet
from speechquant.recipes.evaluate import evaluate
from speechquant.recipes.quantize import Quantized, QuantizeOptions, quantize

__all__ = [
    "CalibrationRequest",
    "ClipList",
    "DataSet",
    "QuantizeOptions",
    "Quantized",
    "calibrate",
    "evaluate",
    "quantize",
]
