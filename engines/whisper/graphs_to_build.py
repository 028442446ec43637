"""The graphs of an encoder-decoder model as they are built: their sizes and trial inputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle, GraphPart
from speechquant.core.engine_folders import Limits
from speechquant.core.errors import OptionError
from speechquant.core.seq2seq import ALIGN, ENCODER, PREFILL, STEP, Seq2SeqSpec
from speechquant.engines.build_options import BATCH, BuildOptions, GraphToBuild
from speechquant.engines.onnxruntime.opening import open_bundle_graph
from speechquant.engines.runners import Tensors
from speechquant.engines.whisper.log_mel import chunk_features

# Chunks of 30 s that are decoded together; one clip alone is fastest.
_DEFAULT_BATCH = Limits(1, 1, 8)
_USUAL_PROMPT = 4  # start, language, task, and no timestamps
_TRIAL_SECONDS = 2.0
_TRIAL_TOKENS = 8
_OTHERS = frozenset({"features", "hidden", "tokens", "logits", "attention"})


def seq2seq_graphs(bundle: Bundle, options: BuildOptions) -> dict[str, GraphToBuild]:
    """Return the graphs to be built by name; raises OptionError for impossible limits."""
    limits = _limits_of(bundle.spec_as(Seq2SeqSpec), options)
    trials = cache(lambda: _trial_feeds(bundle))  # one for all, and only where ranges are asked for
    graphs = {}
    for name, graph in bundle.graphs.items():
        spec = graph.spec
        dims = {dim for tensor in spec.inputs for dim in tensor.dims if isinstance(dim, str)}
        own = {dim: limits[dim] for dim in limits if dim in dims}
        if name == ENCODER:
            own[BATCH] = Limits(1, 1, 1)  # a session encodes clips one by one
        caches = frozenset(tensor.name for tensor in (*spec.inputs, *spec.outputs)) - _OTHERS
        graphs[name] = GraphToBuild(
            source=graph,
            name=name,
            inputs=spec.inputs,
            limits=own,
            trial=lambda name=name: trials()[name],  # type: ignore[misc]
            caches=caches,
        )
    return graphs


def _limits_of(spec: Seq2SeqSpec, options: BuildOptions) -> dict[str, Limits]:
    frames, tokens = spec.features.chunk_frames, spec.generation.max_tokens
    if options.samples is not None:
        raise OptionError(
            "lengths are given, but a Whisper model is given whole chunks of "
            f"{spec.features.chunk_samples / spec.sample_rate_hz:g} s; leave them out"
        )
    batch = options.batch or _DEFAULT_BATCH
    if batch.least > 1:
        raise OptionError(
            f"the least of batch is {batch.least}, but of several clips each ends at a token of "
            f"its own, until one is left; give --batch 1,{batch.best},{batch.most}"
        )
    return {
        BATCH: batch,
        "frames": Limits(frames, frames, frames),
        "positions": Limits(frames // 2, frames // 2, frames // 2),
        "prompt": Limits(1, min(_USUAL_PROMPT, tokens), tokens),
        # With the token that a step adds there are as many as the model has positions for.
        "past": Limits(1, max(tokens // 4, 1), tokens - 1),
    }


def _trial_feeds(bundle: Bundle) -> dict[str, Tensors]:
    """Return feeds of each graph: two seconds of seeded noise, and tokens drawn as well."""
    spec, rng = bundle.spec_as(Seq2SeqSpec), np.random.default_rng(0)
    noise = rng.standard_normal(round(_TRIAL_SECONDS * spec.sample_rate_hz)).astype(np.float32)
    features = chunk_features(noise, spec.features, spec.sample_rate_hz)
    first = {"features": features[None, :, : spec.features.chunk_frames]}
    hidden = _run(bundle.graphs[ENCODER], first)["hidden"]
    tokens = rng.integers(0, spec.generation.end, (1, _TRIAL_TOKENS))
    second = {"tokens": tokens, "hidden": hidden}
    caches = {
        name: value
        for name, value in _run(bundle.graphs[PREFILL], second).items()
        if name not in _OTHERS
    }
    third = {"tokens": tokens[:, :1], **caches}
    return {ENCODER: first, PREFILL: second, STEP: third, ALIGN: second}


def _run(graph: GraphPart, feeds: Tensors) -> dict[str, NDArray[Any]]:
    with open_bundle_graph(graph, None, None) as session:
        return session.run(feeds)
