"""The families of models: what recognizes, probes, scores and builds the models of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CTC
from speechquant.core.engine_folders import Engine
from speechquant.core.graphs import INPUT
from speechquant.core.scoring import Scorer
from speechquant.core.seq2seq import TASK
from speechquant.engines.build_options import BuildOptions, GraphToBuild
from speechquant.engines.ctc.graphs_to_build import ctc_graphs
from speechquant.engines.ctc.probe import ProbeSession, ctc_module_probe
from speechquant.engines.ctc.recognizer import open_ctc_recognizer
from speechquant.engines.ctc.recognizer import require_askable as require_askable_ctc
from speechquant.engines.ctc.scoring import UtteranceScorer
from speechquant.engines.decoding_options import GREEDY, DecodingOptions
from speechquant.engines.module_probe import ModuleProbe
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.session import load_source
from speechquant.engines.trials.probed_graph import Probe
from speechquant.engines.trials.task import ScoringTask
from speechquant.engines.voice.recognizer import VoicedRecognizer
from speechquant.engines.voice.silero import require_silero
from speechquant.engines.whisper.graphs_to_build import seq2seq_graphs
from speechquant.engines.whisper.probe import Seq2SeqProbe, whisper_module_probe
from speechquant.engines.whisper.recognizer import open_whisper_recognizer
from speechquant.engines.whisper.recognizer import require_askable as require_askable_whisper
from speechquant.engines.whisper.scoring import Seq2SeqUtteranceScorer


class OpenRecognizer(Protocol):
    """What opens the recognizer of one family."""

    def __call__(
        self,
        source: Bundle | Engine,
        *,
        provider: str | None,
        threads: int | None,
        decoding: DecodingOptions | None,
        profile_to: Path | None,
    ) -> Recognizer:
        """Return what transcribes a bundle or an engine; see `open_recognizer`."""
        ...


class OpenProbe(Protocol):
    """What opens the probe of one family."""

    def __call__(
        self, bundle: Bundle, threads: int | None, *, attention: bool, placement: str = INPUT
    ) -> Probe:
        """Return what shows the activations of a bundle; see `open_probe`."""
        ...


@dataclass(frozen=True)
class Family:
    """What is done with models of one task; `core.artifacts.SPECS` has how they are read.

    `require_askable` raises OptionError where a model cannot be asked so.
    `trial_decoding` is how the trials of a search and of the guard are decoded.
    """

    task: str
    recognizer: OpenRecognizer
    require_askable: Callable[[Bundle | Engine, DecodingOptions | None], None]
    probe: OpenProbe
    module_probe: Callable[[Bundle, int | None], ModuleProbe]
    scorer: Callable[[ScoringTask, Bundle], Scorer]
    graphs_to_build: Callable[[Bundle, BuildOptions], Mapping[str, GraphToBuild]]
    trial_decoding: DecodingOptions | None = None


FAMILIES = (
    Family(
        task=CTC,
        recognizer=open_ctc_recognizer,
        require_askable=require_askable_ctc,
        probe=ProbeSession,
        module_probe=ctc_module_probe,
        scorer=UtteranceScorer,
        graphs_to_build=ctc_graphs,
    ),
    Family(
        task=TASK,
        recognizer=open_whisper_recognizer,
        require_askable=require_askable_whisper,
        probe=Seq2SeqProbe,
        module_probe=whisper_module_probe,
        scorer=Seq2SeqUtteranceScorer,
        graphs_to_build=seq2seq_graphs,
        trial_decoding=GREEDY,
    ),
)


def family_of(source: Bundle | Engine) -> Family:
    """Return the family of a bundle's or an engine's model."""
    return next(family for family in FAMILIES if family.task == source.spec.task)


def open_recognizer(
    source: Bundle | Engine | str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    decoding: DecodingOptions | None = None,
    profile_to: Path | None = None,
) -> Recognizer:
    """Return what transcribes `source`.

    `decoding` is for models that write token by token: how they are asked where a call does not
    say otherwise. It is checked before anything is loaded; its `vad` is for models of any family,
    and has to be asked for here. The other options are those of `open_session`. Raises BundleError,
    EngineError, OptionError and MissingPackageError.
    """
    source = load_source(source)
    voiced = decoding if decoding is not None and decoding.vad else None
    if voiced is not None:
        require_silero()
        decoding = replace(voiced, vad=False)
    recognizer = family_of(source).recognizer(
        source, provider=provider, threads=threads, decoding=decoding, profile_to=profile_to
    )
    return recognizer if voiced is None else VoicedRecognizer(recognizer, voiced)
