"""A checkpoint's bundles: in float, and quantized as the paper does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from speechquant.benchmarks.papers.real_whisper.candidates import Ours
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.rows import EXEMPT
from speechquant.calibrators.methods import EMA, MethodOptions
from speechquant.core.bundles import DESCRIPTION, Bundle, load_bundle
from speechquant.core.errors import OptionError
from speechquant.core.scales import TENSOR, Bits
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.runners import CPU
from speechquant.recipes.experiment import Experiment


@dataclass(frozen=True)
class PaperModels(Models):
    """What the paper's Table 2 compares.

    EMA of minimum and maximum, asymmetric, a scale for each tensor. Of the last projection of the
    encoder's attentions, and of what reads the final layer norm, the activations stay float.
    """

    def ours(self, bits: int | None) -> tuple[Ours, int]:
        """Return what runs with activations of so many bits, None for float, and its bytes."""
        bundle = self.float_bundle if bits is None else self._quantized(bits)
        return Ours(bundle.folder, self.threads, self.language, CPU), bundle.size_bytes

    def _quantized(self, bits: int) -> Bundle:
        folder = self.work / f"activations-{bits}"
        if (folder / DESCRIPTION).is_file():
            return load_bundle(folder)
        method = MethodOptions(EMA, Bits(activations=bits), symmetric=False, weight_scales=TENSOR)
        table = self._experiment.table_with(method, float_activations=EXEMPT)
        return quantize_bundle(self.float_bundle, folder, table)

    @cached_property
    def _experiment(self) -> Experiment:
        return Experiment(self.float_bundle, self.calibration, (), self.work)


def folders_by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders by their names; raises OptionError for two of one name."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise OptionError(f"{', '.join(names)}: two folders of one name; call one otherwise")
    return dict(zip(names, folders, strict=True))
