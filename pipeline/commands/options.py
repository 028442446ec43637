"""Options that several commands have, and what their words stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from speechquant.calibrators.calibrate import SEARCHES
from speechquant.calibrators.methods import BALANCED, METHODS
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

# The panels of --help; what most calls need stands above them.
SEARCH, LAYERS, SCORING = "Method and search", "What is quantized", "Data and scoring"
MEASURING, COMPARING = "What is measured", "Comparing two reports"
WHISPER, LIMITS = "Whisper", "Batches and limits"
RUNNING, RESULT, TENSORRT = "Processor and workers", "Output", "TensorRT"

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=RESULT)
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace OUT where it exists.", rich_help_panel=RESULT)
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Cores for one call; by default all.", rich_help_panel=RUNNING),
]
Provider = Annotated[
    str,
    typer.Option(
        help=f"What runs a bundle: {', '.join(BUNDLE_PROVIDERS)}; {AUTO} is openvino on Intel "
        "processors, cpu on others.",
        rich_help_panel=RUNNING,
    ),
]
ScoringProvider = Annotated[
    str | None,
    typer.Option(
        help=f"What runs a bundle: {', '.join([*BUNDLE_PROVIDERS, AUTO])}. An engine runs on its "
        "own backend.",
        show_default="cpu",
        rich_help_panel=RUNNING,
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
    str,
    typer.Option(
        help=f"How texts are normalized before they are compared: {', '.join(NORMALIZERS)}.",
        rich_help_panel=SCORING,
    ),
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
        "--skip-unreadable",
        help="Leave out clips that cannot be read, and name them.",
        rich_help_panel=SCORING,
    ),
]
FirstClips = Annotated[int | None, typer.Option(min=1, help="Use only the first N clips.")]

# --- of Whisper models ----------------------------------------------------------------------------

Language = Annotated[
    str | None,
    typer.Option(
        help="Whisper: language of the audio, as a name or a code (English, en). By default it "
        "is the checkpoint's own, else detected.",
        rich_help_panel=WHISPER,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="Whisper: transcribe, or translate into English.",
        show_default="transcribe",
        rich_help_panel=WHISPER,
    ),
]
Temperatures = Annotated[
    str | None,
    typer.Option(
        help="Whisper: sampling temperatures, tried in this order while a chunk's text loops or "
        "is improbable; 0 is greedy decoding.",
        show_default="0,0.2,0.4,0.6,0.8,1",
        rich_help_panel=WHISPER,
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
        help="Whisper: text that stands before every chunk as previous context: names, spellings.",
        show_default=False,
    ),
]
PreviousText = Annotated[
    bool,
    typer.Option(
        "--previous-text", help="Whisper: each chunk sees the text of those before as context."
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

Method = Annotated[
    str,
    typer.Option(
        help="How activation ranges are found: "
        f"{', '.join(method for method in METHODS if method != BALANCED)}. ({BALANCED}, the "
        'default for Whisper, changes the graph too: run "speechquant quantize".)',
        show_default=True,
    ),
]
MethodOrDefault = Annotated[
    str | None,
    typer.Option(
        help=f"How activation ranges are found: {', '.join(METHODS)}.",
        show_default=f"{DEFAULT_METHODS[TASK]} for Whisper, {DEFAULT_METHODS[CTC]} for CTC models",
    ),
]
BitsOfBoth = Annotated[
    int, typer.Option("--bits", help="Bits of activations and weights, 2 to 16.")
]
WeightBits = Annotated[
    int | None, typer.Option(help="Bits of weights; by default as --bits.", rich_help_panel=SEARCH)
]
Dev = Annotated[
    str | None,
    typer.Option(
        help="Labelled data that WER is scored on, in searches and guards. Default: --data."
    ),
]
Percentile = Annotated[
    float,
    typer.Option(
        help="For --method percentile: percent of the magnitudes that stay within the range.",
        rich_help_panel=SEARCH,
    ),
]
Asymmetric = Annotated[
    bool,
    typer.Option(
        "--asymmetric",
        help="For --method ema: unsigned levels 0 to 2^bits-1 with a zero point.",
        rich_help_panel=SEARCH,
    ),
]
Search = Annotated[
    str,
    typer.Option(
        help=f"How StableQuant searches: {' or '.join(SEARCHES)}. exhaustive is Algorithm 1 in "
        "full. fast is a heuristic: it scores a grid of p, and may choose other layers.",
        rich_help_panel=SEARCH,
    ),
]
Gamma = Annotated[
    float,
    typer.Option(
        help="StableQuant clips a layer if quantizing that layer alone raises the WER by more than "
        "this, in points.",
        rich_help_panel=SEARCH,
    ),
]


def bits_of(bits: int, weight_bits: int | None) -> Bits:
    """Return what --bits and --weight-bits ask for; raises OptionError."""
    return Bits(weights=bits if weight_bits is None else weight_bits, activations=bits)


NONE = "none"  # of --keep-float
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep this layer in float; repeat it for more layers. By default a Whisper model "
        f"keeps two layers in float with every method but balanced; {NONE} keeps none.",
        rich_help_panel=LAYERS,
    ),
]
FloatActivations = Annotated[
    list[str] | None,
    typer.Option(
        help="Quantize the weights of this layer, but not its activations; repeat it for more "
        "layers.",
        rich_help_panel=LAYERS,
    ),
]
WeightScales = Annotated[
    str,
    typer.Option(
        help=f"Granularity of the scales of weights, {' or '.join(WEIGHT_SCALES)}: one for each "
        "output channel, or one for each weight, as in Wagner et al.",
        rich_help_panel=LAYERS,
    ),
]
QuantizeAttention = Annotated[
    bool,
    typer.Option(
        "--quantize-attention",
        help="Also quantize the two matrix products of each attention: queries by keys, "
        "probabilities by values.",
        rich_help_panel=LAYERS,
    ),
]
Placement = Annotated[
    str,
    typer.Option(
        help=f"Round activations at the {INPUT} of products, as engines do, or at the {OUTPUT} "
        "of layers, as the StableQuant paper does (CTC models; for measuring WER, engines "
        "cannot run it).",
        rich_help_panel=LAYERS,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N clips of each set.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that share the jobs.",
        show_default=f"1; with --executor {RAY} as many as the cluster has room for",
        rich_help_panel=RUNNING,
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        help=f"Where jobs run: {PROCESSES} of this machine, {RAY} (the cluster in RAY_ADDRESS, "
        f"else one started here), or {RAY_SCHEME}HOST:PORT.",
        rich_help_panel=RUNNING,
    ),
]


def kept_in_float(asked_for: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the layers that --keep-float names, None where it was left out."""
    if not asked_for:
        return None
    return () if list(asked_for) == [NONE] else tuple(dict.fromkeys(asked_for))
