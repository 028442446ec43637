"""The graph of a CTC model as it is built: its sizes and trial inputs."""

from __future__ import annotations

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import MODEL, CtcSpec
from speechquant.core.engine_folders import Limits
from speechquant.core.errors import OptionError
from speechquant.engines.build_options import (
    BATCH,
    SAMPLES,
    BuildOptions,
    GraphToBuild,
    samples_of,
)
from speechquant.engines.ctc.feeds import trial_feeds

# Where nothing else is asked for: clips of 0.1 to 30 seconds, fastest at 10, one at a time.
_DEFAULT_SECONDS = (0.1, 10.0, 30.0)
_DEFAULT_BATCH = Limits(1, 1, 4)
_TOO_MANY_SAMPLES = 1 << 31


def ctc_graphs(bundle: Bundle, options: BuildOptions) -> dict[str, GraphToBuild]:
    """Return the graph of a CTC model as it is built; raises OptionError for too short a clip."""
    spec = bundle.spec_as(CtcSpec)
    return {
        MODEL: GraphToBuild(
            source=bundle.only_graph,
            name=MODEL,
            inputs=spec.inputs,
            limits=limits_of(options, spec),
            trial=lambda: trial_feeds(spec),
        )
    }


def limits_of(options: BuildOptions, spec: CtcSpec) -> dict[str, Limits]:
    """Return the samples and the batch to build for; raises OptionError for too short a clip."""
    samples = options.samples or samples_of(_DEFAULT_SECONDS, spec)
    if samples.least < spec.min_samples:
        rate = spec.sample_rate_hz
        raise OptionError(
            f"the least length is {samples.least} samples ({samples.least / rate:.3f} s), the "
            f"model needs {spec.min_samples}; give at least {spec.min_samples / rate:.3f} s"
        )
    batch = options.batch or _DEFAULT_BATCH
    if samples.most * batch.most >= _TOO_MANY_SAMPLES:
        raise OptionError(
            f"{batch.most} clips of {samples.most / spec.sample_rate_hz:.0f} s are more than "
            "2^31 samples in one call; give a smaller --batch or shorter --lengths"
        )
    return {SAMPLES: samples, BATCH: batch}
