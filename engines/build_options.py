"""What an engine is asked to be, and what a builder answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechquant.core.engine_folders import Limits
from speechquant.core.errors import OptionError, choice_among
from speechquant.core.graphs import GraphSource
from speechquant.core.specs import Spec, TensorSpec
from speechquant.engines.runners import Tensors

FLOAT_TYPES = ("fp16", "bf16", "fp32")
BATCH, SAMPLES = "batch", "samples"  # the named dimensions of a CTC model's inputs


@dataclass(frozen=True)
class BuildOptions:
    """How to build; None leaves the choice to the backend.

    `float_type` is that of what is not quantized. `timing_cache` is a file that is read where it is
    there and written afterwards. `version_compatible` and `hardware_compatible` are TensorRT's: an
    engine for later versions of the same major one, and for every GPU since Ampere.
    """

    backend: str
    target: str | None = None
    samples: Limits | None = None
    batch: Limits | None = None
    float_type: str | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if self.float_type is not None and self.float_type not in FLOAT_TYPES:
            raise OptionError(
                f"float type is {self.float_type!r}; " + choice_among(self.float_type, FLOAT_TYPES)
            )
        for name, limits in (("lengths", self.samples), ("batch", self.batch)):
            if limits is not None:
                _require_ordered(name, limits)


@dataclass(frozen=True)
class Built:
    """What the manifest says of an engine that a builder wrote."""

    target: str
    toolchain: Mapping[str, str]
    float_type: str
    limits: Mapping[str, Limits] = field(default_factory=dict)
    float32_nodes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphToBuild:
    """A graph and what its engine is built for.

    `limits` has every named dimension of the inputs. `trial`
    gives feeds on which the ranges of its values can be seen. `caches` are the inputs and outputs
    that only the engines of one model hand to each other.
    """

    source: GraphSource
    name: str
    inputs: tuple[TensorSpec, ...]
    limits: Mapping[str, Limits]
    trial: Callable[[], Tensors]
    caches: frozenset[str] = frozenset()


def _require_ordered(name: str, limits: Limits) -> None:
    if limits.least < 1:
        raise OptionError(f"the least of {name} is {limits.least}; give at least 1")
    if not limits.least <= limits.best <= limits.most:
        raise OptionError(
            f"{name} are {limits.least}, {limits.best}, {limits.most}; "
            "give the least, the usual and the most in this order"
        )


def samples_of(seconds: tuple[float, float, float], spec: Spec) -> Limits:
    """Return limits in samples from limits in seconds."""
    least, best, most = (round(value * spec.sample_rate_hz) for value in seconds)
    return Limits(least, best, most)


def three_numbers(text: str, name: str) -> tuple[float, float, float]:
    """Return the numbers of MIN,OPT,MAX; one number stands for all three."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(0 <= number < 1e9 for number in numbers):
        raise OptionError(
            f"{name} is {text!r}; give MIN,OPT,MAX, three numbers below 1e9 with commas"
        )
    return numbers[0], numbers[1], numbers[2]


def batch_of(text: str) -> Limits:
    """Return the batch limits that MIN,OPT,MAX says."""
    numbers = three_numbers(text, "batch")
    if any(number != int(number) for number in numbers):
        raise OptionError(f"batch is {text!r}; give whole numbers")
    return Limits(*map(int, numbers))
