"""What a CTC model computes of a clip, for calibration and for a look at its modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.graphs import INPUT
from speechquant.core.manifests import LabelledClip
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.engines.module_probe import ModuleProbe
from speechquant.engines.trials.module_outputs import module_tensors
from speechquant.engines.trials.probed_graph import ProbedGraph


class ClipProbe(ProbedGraph):
    """Shows any tensors of the graph, clip by clip."""

    def __init__(self, bundle: Bundle, names: Iterable[str], threads: int | None = None) -> None:
        self._spec = bundle.spec_as(CtcSpec)
        super().__init__(bundle.only_graph, names, threads)

    def tensors_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the tensors that a clip alone gives; raises AudioError."""
        return self.run(feeds_of(self._spec, [read_clip(self._spec, clip.audio)]))


class ProbeSession(ClipProbe):
    """Shows the activations to be quantized."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        *,
        attention: bool = False,
        placement: str = INPUT,
    ) -> None:
        names = bundle.spec.activations(attention=attention, placement=placement)
        super().__init__(bundle, names, threads)

    def activations_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the activations that a clip alone gives; raises AudioError."""
        return self.tensors_of(clip)


def ctc_module_probe(bundle: Bundle, threads: int | None) -> ModuleProbe:
    """Return what shows the outputs of a CTC model's modules."""
    modules = module_tensors(bundle.only_graph)
    probe = ClipProbe(bundle, modules.names, threads)
    return ModuleProbe({"": modules}, probe, probe.tensors_of)
