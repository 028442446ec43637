"""Options that several commands have, and what their words stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from speechquant.calibrators.calibrate import SEARCHES
from speechquant.calibrators.methods import METHODS
from speechquant.core.ctc import CTC
from speechquant.core.graphs import INPUT, OUTPUT
from speechquant.core.scales import WEIGHT_SCALES, Bits
from speechquant.core.seq2seq import TASK
from speechquant.core.text import NORMALIZERS
from speechquant.core.transcripts.languages import language_code
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.registry import provider_names
from speechquant.engines.runners import AUTO
from speechquant.pipeline.sources import numbers_of
from speechquant.recipes.calibrate import DEFAULT_METHODS
from speechquant.recipes.executors.options import PROCESSES, RAY, RAY_SCHEME

BUNDLE_PROVIDERS = provider_names()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Cores that one call may use; all by default.")
]
Provider = Annotated[
    str,
    typer.Option(
        help=f"What a bundle runs on: {', '.join(BUNDLE_PROVIDERS)}; {AUTO} is openvino on Intel "
        "processors, cpu on others."
    ),
]
ScoringProvider = Annotated[
    str | None,
    typer.Option(
        help=f"What a bundle runs on: {', '.join([*BUNDLE_PROVIDERS, AUTO])}. An engine runs on "
        "its own backend.",
        show_default="cpu",
    ),
]
Runnable = Annotated[
    Path, typer.Argument(help="Folder that `export`, `quantize` or `build` wrote.", readable=False)
]
BundleFolder = Annotated[Path, typer.Argument(help="Folder that `export` wrote.", readable=False)]
BundleToWrite = Annotated[
    Path, typer.Argument(help="Folder of the bundle to write.", readable=False)
]
Normalizer = Annotated[
    str, typer.Option(help=f"How texts are made comparable: {', '.join(NORMALIZERS)}.")
]
Data = Annotated[
    str,
    typer.Option(
        help="JSONL manifest, folder, Parquet, tar shards, lhotse cuts or another kind of "
        "docs/data.md; a URI of one; zoo:train, zoo:dev, zoo:test."
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Name clips that cannot be read and go on without them."
    ),
]
FirstClips = Annotated[int | None, typer.Option(min=1, help="Only the first clips.")]

# --- of Whisper models ----------------------------------------------------------------------------

Language = Annotated[
    str | None,
    typer.Option(
        help="Whisper: a name or a code, such as English or en; by default the checkpoint's own, "
        "or detected."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(help="Whisper: transcribe, or translate into English.", show_default="transcribe"),
]
Temperatures = Annotated[
    str | None,
    typer.Option(
        help="Whisper: 0 is greedy; the later ones are for chunks that come out as loops or "
        "guesses.",
        show_default="0,0.2,0.4,0.6,0.8,1",
    ),
]

Beam = Annotated[
    int,
    typer.Option(
        "--beam",
        min=1,
        help="Whisper: how many texts are followed at a temperature of 0; 1 is greedy, 5 is usual.",
    ),
]
InitialPrompt = Annotated[
    str | None,
    typer.Option(
        help="Whisper: text that every chunk is heard as the continuation of: names, spellings.",
        show_default=False,
    ),
]
PreviousText = Annotated[
    bool,
    typer.Option(
        "--previous-text", help="Whisper: each chunk is heard as the continuation of those before."
    ),
]
Vad = Annotated[
    bool,
    typer.Option(
        "--vad",
        help="Leave silence out, cut at pauses, and decode the pieces together (silero-vad).",
    ),
]


def decoding_options(
    language: str | None, task: str | None, temperatures: str | None, *, timestamps: bool = False
) -> DecodingOptions:
    """Return what the command line asks of a Whisper model; raises OptionError."""
    code = None if language is None else language_code(language)
    options = DecodingOptions(language=code, task=task, timestamps=timestamps)
    if temperatures is None:
        return options
    return replace(options, temperatures=numbers_of(temperatures, "temperatures"))


# --- of a calibration -----------------------------------------------------------------------------

Method = Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.", show_default=True)]
MethodOrDefault = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(METHODS)}.",
        show_default=f"{DEFAULT_METHODS[TASK]} for Whisper, {DEFAULT_METHODS[CTC]} for CTC models",
    ),
]
BitsOfBoth = Annotated[int, typer.Option("--bits", help="Bits of activations and weights, 2..16.")]
WeightBits = Annotated[int | None, typer.Option(help="Bits of the weights, where they differ.")]
Dev = Annotated[
    str | None, typer.Option(help="Data with texts to score trials on; DATA by default.")
]
Percentile = Annotated[
    float, typer.Option(help="For --method percentile: the share of magnitudes kept, in percent.")
]
Asymmetric = Annotated[
    bool, typer.Option("--asymmetric", help="For --method ema: levels 0..2^b-1, a zero point.")
]
Search = Annotated[
    str,
    typer.Option(
        help=f"How StableQuant searches: {' or '.join(SEARCHES)} (exhaustive is Algorithm 1 in "
        "full; fast is a heuristic that looks at a grid of p and chooses other layers)."
    ),
]
Gamma = Annotated[
    float, typer.Option(help="WER points that a layer alone may add before it is clipped.")
]


def bits_of(bits: int, weight_bits: int | None) -> Bits:
    """Return what --bits and --weight-bits ask for; raises OptionError."""
    return Bits(weights=bits if weight_bits is None else weight_bits, activations=bits)


NONE = "none"  # of --keep-float
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave this layer in float; may be given again. Of Whisper models two are left where "
        f"nothing is given; {NONE}: leave none."
    ),
]
FloatActivations = Annotated[
    list[str] | None,
    typer.Option(
        help="Quantize the weights of this layer but not its activations; may be given again."
    ),
]
WeightScales = Annotated[
    str,
    typer.Option(
        help=f"What shares a scale of a weight: {' or '.join(WEIGHT_SCALES)} (Wagner et al.)."
    ),
]
QuantizeAttention = Annotated[
    bool,
    typer.Option("--quantize-attention", help="Also what attention multiplies by each other."),
]
Placement = Annotated[
    str,
    typer.Option(
        help=f"Round activations at the {INPUT} of products, as engines do, or at the {OUTPUT} of "
        "layers, as the StableQuant paper does (CTC; for words, not for engines)."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first clips of each set.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that jobs are spread over.",
        show_default=f"1; all that a cluster has room for with --executor {RAY}",
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        help=f"Where jobs run: {PROCESSES} of this machine, {RAY} (the cluster in RAY_ADDRESS, "
        f"else one started here), or {RAY_SCHEME}HOST:PORT. Never used for latency."
    ),
]


def kept_in_float(asked_for: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the layers that --keep-float names, None where it was left out."""
    if not asked_for:
        return None
    return () if list(asked_for) == [NONE] else tuple(dict.fromkeys(asked_for))
