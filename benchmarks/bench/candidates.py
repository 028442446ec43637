"""What a bench compares: bundles on each provider, engines, and other tools' versions of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speechquant.benchmarks.peers.make import Peer, open_peer
from speechquant.benchmarks.report.record import FLOAT, OURS, PEER, Profile
from speechquant.benchmarks.search import Search, read_search
from speechquant.core.artifact_folders import digest_of
from speechquant.core.bundles import FLOAT_PRECISION, Bundle, load_bundle
from speechquant.core.engine_folders import Engine, engine_bytes
from speechquant.core.errors import EngineError, OptionError, choice_among
from speechquant.core.seq2seq import TASK, Seq2SeqSpec
from speechquant.core.specs import is_graph_file
from speechquant.engines.ctc.feeds import MAX_CLIP_SECONDS
from speechquant.engines.ctc.recognizer import CtcRecognizer
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.registry import first_of, provider_names
from speechquant.engines.runners import AUTO
from speechquant.engines.session import how_it_runs, load_source
from speechquant.engines.tensorrt.layers import layer_report
from speechquant.engines.whisper.asking import require_known
from speechquant.engines.whisper.recognizer import WhisperRecognizer

_SHORT_HASH = 8


@dataclass(frozen=True)
class Candidate:
    """Something to be measured; it is opened in a process of its own.

    `model` is shared by all that come from one float bundle. `products` are those of an engine
    whose build listed them. Of a peer, `source` is the float bundle that it was made from.
    `decoding` is how a model is asked that writes token by token, None for one that does not.
    """

    name: str
    model: str
    role: str
    source: Path
    how: str
    provider: str
    precision: str
    size_bytes: int | None
    sha256: str
    sample_rate_hz: int
    search: Search | None = None
    products: Mapping[str, int] | None = None
    peer: Peer | None = None
    decoding: DecodingOptions | None = None

    @property
    def longest_seconds(self) -> float:
        """The longest clip that such a model is run on."""
        return MAX_CLIP_SECONDS if self.decoding is None else WhisperRecognizer.max_clip_seconds

    def open(self, threads: int | None, profile_to: Path | None = None) -> Recognizer:
        """Return a recognizer that runs on what the candidate says, and on nothing else.

        Raises what `open_recognizer` does, and EngineError where there is no such provider.
        """
        if self.peer is not None:
            bundle = load_bundle(self.source)
            return CtcRecognizer(bundle, open_peer(self.peer, bundle, threads, profile_to))
        with _Warnings() as heard:
            recognizer = open_recognizer(
                self.source,
                provider=self.provider,
                threads=threads,
                decoding=self.decoding,
                profile_to=profile_to,
            )
        if self.provider != AUTO and recognizer.provider != self.provider:
            reason = heard[-1].partition("; running on")[0] if heard else "it is not to be had here"
            raise EngineError(f"{self.provider}: {reason}")
        return recognizer

    def how_opened(self, recognizer: Recognizer) -> str:
        """Return `how`, with what is known of a bundle's provider once it is open."""
        is_bundle = self.peer is None and self.provider != AUTO
        return how_it_runs(recognizer.session) if is_bundle else self.how

    @property
    def built_profile(self) -> Profile | None:
        """What the build of an engine tells of its products, without any time."""
        return None if self.products is None else Profile(0.0, (), self.products)


class _Warnings(logging.Handler):
    """Keeps what is logged as a warning while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage().removeprefix("warning: "))

    def __enter__(self) -> list[str]:
        logging.getLogger("speechquant").addHandler(self)
        return self.heard

    def __exit__(self, *_: object) -> None:
        logging.getLogger("speechquant").removeHandler(self)


def candidates_of(
    folders: Sequence[Path], providers: Sequence[str], decoding: DecodingOptions | None = None
) -> list[Candidate]:
    """Return a candidate for each engine, and for each bundle on each of the providers.

    Those of one model follow each other, its float bundle first. `decoding` is how Whisper models
    are asked. Raises BundleError or EngineError for a folder that is damaged, OptionError for a
    provider that there is not, or where no model is there to be asked.
    """
    for provider in providers:
        if provider not in provider_names():
            raise OptionError(
                f"no provider {provider!r} to bench; {choice_among(provider, provider_names())}"
            )
    if not folders:
        raise OptionError("nothing to bench; give a bundle or an engine")
    sources = [load_source(folder) for folder in dict.fromkeys(path.resolve() for path in folders)]
    asked = decoding or DecodingOptions()
    if asked != DecodingOptions():
        _require_askable(sources, asked)
    names = _names([source.folder for source in sources])
    found: list[Candidate] = []
    for source, name, model in zip(sources, names, _models(sources), strict=True):
        own = asked if source.spec.task == TASK else None
        if isinstance(source, Engine):
            found.append(_engine_candidate(source, name, model, own))
        else:
            found += [
                _bundle_candidate(source, name, model, provider, own)
                for provider in dict.fromkeys(providers)
            ]
    order = list(dict.fromkeys(candidate.model for candidate in found))
    return sorted(found, key=lambda one: (order.index(one.model), one.role != FLOAT))


def _require_askable(sources: Sequence[Bundle | Engine], asked: DecodingOptions) -> None:
    whispers = {
        source.folder: source.spec for source in sources if isinstance(source.spec, Seq2SeqSpec)
    }
    for folder, spec in whispers.items():
        require_known(spec, asked, folder)
    if not whispers:
        raise OptionError(
            "no Whisper model among these, which alone has a language, a task and temperatures; "
            "leave these away"
        )


def _bundle_candidate(
    bundle: Bundle, name: str, model: str, provider: str, decoding: DecodingOptions | None
) -> Candidate:
    return Candidate(
        name=f"{name} ({provider})",
        model=model,
        role=FLOAT if bundle.spec.precision == FLOAT_PRECISION else OURS,
        source=bundle.folder,
        how=first_of(provider).library,  # which OpenVINO it is shows when it is opened,
        provider=provider,
        precision=bundle.spec.precision,
        size_bytes=sum(
            (bundle.folder / file).stat().st_size for file in bundle.files if is_graph_file(file)
        ),
        # How audio and text are read counts too: another setting gives other words.
        sha256=digest_of({"graphs": bundle.model_sha256, "reading": bundle.reading_sha256}),
        sample_rate_hz=bundle.spec.sample_rate_hz,
        search=read_search(bundle.folder),
        decoding=decoding,
    )


def _engine_candidate(
    engine: Engine, name: str, model: str, decoding: DecodingOptions | None
) -> Candidate:
    manifest = engine.manifest
    return Candidate(
        name=name,
        model=model,
        # An engine is something that was made, also where it is made of a float bundle.
        role=OURS,
        source=engine.folder,
        how=f"engine of {manifest.backend} for {manifest.target}, float type {manifest.float_type}",
        provider=AUTO,
        precision=manifest.source["precision"],
        size_bytes=engine_bytes(engine),
        sha256=digest_of({"files": dict(engine.files), "reading": asdict(engine.spec)}),
        sample_rate_hz=engine.spec.sample_rate_hz,
        products=_built_products(engine),
        decoding=decoding,
    )


def peer_candidates(
    source: Candidate, peers: Sequence[Peer], *, names_model: bool
) -> list[Candidate]:
    """Return a candidate for each of the peers that were made from a float bundle.

    `names_model` tells those of several models apart by name.
    """
    return [
        replace(
            source,
            name=f"{peer.name}, {source.model}" if names_model else peer.name,
            role=PEER,
            how=peer.how,
            provider=peer.runtime,
            precision=peer.precision,
            size_bytes=peer.size_bytes,
            sha256=digest_of(
                {"source": source.sha256, "name": peer.name, "how": peer.how, "key": peer.key}
            ),
            peer=peer,
        )
        for peer in peers
    ]


def _built_products(engine: Engine) -> dict[str, int] | None:
    reports = [layer_report(graph) for graph in engine.graphs.values()]
    placed = [item for report in reports if report is not None for item in report.placed()]
    layers = [item.layer for item in placed if item.product.weighted and item.layer is not None]
    return None if None in reports else dict(Counter(layer.precision for layer in layers))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' last parts, or their whole paths where those are not different."""
    last = [folder.name for folder in folders]
    taken = Counter(last)
    return [
        name if taken[name] == 1 else str(folder)
        for name, folder in zip(last, folders, strict=True)
    ]


def _models(sources: Sequence[Bundle | Engine]) -> list[str]:
    """Return for each the name of the checkpoint it goes back to, told apart by the float graph."""
    roots = [_root(source) for source in sources]
    graphs: dict[str, list[str]] = {}
    for checkpoint, sha256 in dict.fromkeys(roots):
        graphs.setdefault(checkpoint, []).append(sha256)
    return [
        checkpoint if len(graphs[checkpoint]) == 1 else f"{checkpoint} {sha256[:_SHORT_HASH]}"
        for checkpoint, sha256 in roots
    ]


def _root(source: Bundle | Engine) -> tuple[str, str]:
    """Return the checkpoint and the hash of the float graph that `source` goes back to."""
    facts: Mapping[str, Any]
    if isinstance(source, Engine):
        facts = source.manifest.source
    else:
        facts = {"model_sha256": source.model_sha256, "made_from": source.made_from}
    while "parent" in facts["made_from"]:
        facts = facts["made_from"]["parent"]
    # Balanced channels make a float bundle in between.
    sha256 = facts["made_from"].get("balanced_from", facts["model_sha256"])
    checkpoint = str(facts["made_from"].get("checkpoint", source.folder.name))
    # Where a checkpoint lies is of no interest to who reads the report.
    is_path = Path(checkpoint).is_absolute() or checkpoint.startswith(".")
    return Path(checkpoint).name if is_path else checkpoint, sha256
