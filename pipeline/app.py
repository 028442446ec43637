"""The commands and their options; each one reads its input, calls a step, shows the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechquant.engines.registry import engine_backends, provider_names
from speechquant.pipeline.console import show_logs

app = typer.Typer(
    name="speechquant",
    help="Speech foundation models from a checkpoint to an INT8 engine that can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Add --debug anywhere to see the traceback of an error.",
)
zoo_app = typer.Typer(help="The small trained models and the corpus.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

_PROVIDERS = ", ".join(provider_names())
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Cores that one call may use; all by default.")
]
Provider = Annotated[
    str,
    typer.Option(
        help=f"What a bundle runs on: {_PROVIDERS}; auto is openvino on Intel processors, cpu on "
        "others."
    ),
]
ScoringProvider = Annotated[
    str | None,
    typer.Option(
        help=f"What a bundle runs on: {_PROVIDERS}, auto. An engine runs on its own backend.",
        show_default="cpu",
    ),
]
Runnable = Annotated[
    Path, typer.Argument(help="Folder that `export`, `quantize` or `build` wrote.", readable=False)
]
BundleFolder = Annotated[Path, typer.Argument(help="Folder that `export` wrote.", readable=False)]
Normalizer = Annotated[
    str, typer.Option(help="How texts are made comparable: basic, whisper, none.")
]
Data = Annotated[
    str, typer.Option(help="JSONL manifest, LibriSpeech folder, or zoo:train, zoo:dev, zoo:test.")
]


Language = Annotated[
    str | None,
    typer.Option(help="Whisper: a code such as en; by default the checkpoint's own, or detected."),
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


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, hub id, zoo:NAME or random:NAME.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle to write.", readable=False)],
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a Hugging Face checkpoint into an ONNX bundle, checked against torch."""
    from speechquant.pipeline.steps import run_export

    run_export(model, out, force=force, as_json=json)


@app.command()
def transcribe(
    bundle: Runnable,
    audio: Annotated[
        list[Path], typer.Argument(help="Audio files, or folders of them.", readable=False)
    ],
    language: Language = None,
    task: Task = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Whisper: show when each segment is said.")
    ] = False,
    temperatures: Temperatures = None,
    provider: Provider = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write down what is said in audio files."""
    from speechquant.pipeline.transcription import decoding_options, run_transcribe

    run_transcribe(
        bundle,
        audio,
        decoding=decoding_options(language, task, temperatures, timestamps=timestamps),
        provider=provider,
        threads=threads,
        as_json=json,
    )


@app.command()
def evaluate(
    bundle: Runnable,
    data: Data,
    normalizer: Normalizer = "basic",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first clips.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst clips to show.")] = 5,
    language: Language = None,
    task: Task = None,
    temperatures: Temperatures = None,
    provider: ScoringProvider = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Count the errors of a bundle on a data set with texts."""
    from speechquant.pipeline.steps import run_evaluate
    from speechquant.pipeline.transcription import decoding_options

    run_evaluate(
        bundle,
        data,
        decoding=decoding_options(language, task, temperatures),
        normalizer=normalizer,
        limit=limit,
        worst=worst,
        provider=provider,
        threads=threads,
        as_json=json,
    )


@app.command()
def inspect(
    source: Annotated[
        Path, typer.Argument(help="A bundle, an engine or a scale table.", readable=False)
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Draw amplitudes and search of a quantized CTC bundle here.", readable=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a bundle, an engine or a scale table holds and what it was made from."""
    from speechquant.pipeline.inspection import run_inspect

    run_inspect(source, pictures, as_json=json)


@app.command()
def outliers(
    bundle: BundleFolder,
    data: Data,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first clips.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="The projection whose attention is drawn; the last one.")
    ] = None,
    head: Annotated[int, typer.Option(min=0, help="Its head that is drawn.")] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Draw outliers by dimension, and a head, here.", readable=False),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Show which modules of a float bundle give values far from the others."""
    from speechquant.pipeline.outliers import run_outliers

    run_outliers(
        bundle,
        data,
        limit=limit,
        attention=attention,
        head=head,
        pictures=pictures,
        threads=threads,
        as_json=json,
    )


Method = Annotated[
    str, typer.Option(help="stablequant, ema, max, percentile, entropy, mse.", show_default=True)
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
    str, typer.Option(help="How StableQuant searches: fast, or exhaustive (Algorithm 1 in full).")
]
Gamma = Annotated[
    float, typer.Option(help="WER points that a layer alone may add before it is clipped.")
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave this layer in float; may be given again. Of Whisper models two are left where "
        "nothing is given; none: leave none."
    ),
]
QuantizeAttention = Annotated[
    bool,
    typer.Option("--quantize-attention", help="Also what attention multiplies by each other."),
]
Weights = Annotated[str, typer.Option("--weights", help="Rounding: nearest or adaround.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first clips of each set.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that score trials.")]


@app.command()
def calibrate(
    bundle: BundleFolder,
    data: Data,
    out: Annotated[Path, typer.Option(help="The scale table to write.", readable=False)],
    dev: Dev = None,
    method: Method = "stablequant",
    bits: BitsOfBoth = 8,
    weight_bits: WeightBits = None,
    percentile: Percentile = 99.99,
    asymmetric: Asymmetric = False,
    search: Search = "fast",
    gamma: Gamma = 0.25,
    keep_float: KeepFloat = None,
    quantize_attention: QuantizeAttention = False,
    normalizer: Normalizer = "basic",
    limit: Limit = None,
    workers: Workers = 1,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a scale table from a bundle and audio."""
    from speechquant.pipeline.quantization import new_request, run_calibrate

    request = new_request(
        bundle,
        data,
        dev,
        out,
        method=method,
        bits=bits,
        weight_bits=weight_bits,
        percentile=percentile,
        asymmetric=asymmetric,
        search=search,
        gamma=gamma,
        keep_float=keep_float,
        attention=quantize_attention,
        normalizer=normalizer,
        limit=limit,
        workers=workers,
        threads=threads,
    )
    run_calibrate(request, out, force=force, as_json=json)


@app.command()
def quantize(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Argument(help="Folder of the bundle to write.", readable=False)],
    data: Annotated[
        str | None,
        typer.Option(help="Calibration audio: manifest, LibriSpeech folder, zoo:train|dev|test."),
    ] = None,
    dev: Dev = None,
    scales: Annotated[
        Path | None, typer.Option(help="A table that `calibrate` made.", readable=False)
    ] = None,
    method: Method = "stablequant",
    bits: BitsOfBoth = 8,
    weight_bits: WeightBits = None,
    percentile: Percentile = 99.99,
    asymmetric: Asymmetric = False,
    search: Search = "fast",
    gamma: Gamma = 0.25,
    max_wer_drop: Annotated[
        float | None,
        typer.Option(
            help="WER points that it may cost on --dev, Whisper models decoded greedily; layers "
            "stay float to keep it."
        ),
    ] = None,
    keep_float: KeepFloat = None,
    quantize_attention: QuantizeAttention = False,
    weights: Weights = "nearest",
    spelling: Annotated[
        str, typer.Option(help="Q/DQ as onnxruntime (uint8) or tensorrt (int8) likes it.")
    ] = "onnxruntime",
    normalizer: Normalizer = "basic",
    limit: Limit = None,
    workers: Workers = 1,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a W8A8 bundle (or another width) from a float one; a killed run goes on where it was."""
    from speechquant.pipeline.quantization import QuantizeOptions, new_request, run_quantize

    request = new_request(
        bundle,
        data,
        dev,
        out,
        method=method,
        bits=bits,
        weight_bits=weight_bits,
        percentile=percentile,
        asymmetric=asymmetric,
        search=search,
        gamma=gamma,
        keep_float=keep_float,
        attention=quantize_attention,
        weights=weights,
        normalizer=normalizer,
        limit=limit,
        workers=workers,
        threads=threads,
    )
    options = QuantizeOptions(out, scales, spelling, max_wer_drop, force)
    run_quantize(request, options, as_json=json)


@app.command()
def build(
    bundle: Annotated[
        Path, typer.Argument(help="Folder that `quantize` or `export` wrote.", readable=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the engine to write.", readable=False)],
    backend: Annotated[str, typer.Option(help=f"{', '.join(engine_backends())}.")],
    target: Annotated[
        str | None,
        typer.Option(help="The GPU: sm86, rtx3090, ..., or current; current by default."),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="MIN,OPT,MAX seconds of a clip; on a GPU 0.1,10,30; not for Whisper."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="MIN,OPT,MAX clips in one call; on a GPU 1,1,4; Whisper 1,1,8."),
    ] = None,
    rest: Annotated[
        str | None,
        typer.Option(help="Type of what is not quantized: fp16 (default on a GPU), bf16, fp32."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT: file of its measurements, read and written.", readable=False),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: for later versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="TensorRT: for every GPU since Ampere.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Build an engine from a W8A8 or float bundle, and show what precision it runs in."""
    from speechquant.pipeline.build import run_build

    run_build(
        bundle,
        out,
        force=force,
        as_json=json,
        backend=backend,
        target=target,
        lengths=lengths,
        batch=batch,
        rest=rest,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )


@app.command()
def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="Bundles and engines; float bundles are what is compared with."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Speech to time and score on; without texts it is timed alone."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report to write.", readable=False)
    ] = None,
    lengths: Annotated[str, typer.Option(help="Seconds of audio.")] = "1,2,5,10,15,20,30",
    batch: Annotated[str, typer.Option(help="Clips in one call.")] = "1,4,8",
    providers: Annotated[
        str | None,
        typer.Option(help=f"What bundles run on: {_PROVIDERS}; by default what auto would take."),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also other tools' versions of the float bundles.")
    ] = False,
    only_peers: Annotated[
        str | None,
        typer.Option(help="Parts of their names, such as nncf,bf16: of the peers these alone."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Audio that the peers are calibrated on.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed runs of each shape.")] = 15,
    language: Language = None,
    task: Task = None,
    temperatures: Temperatures = None,
    no_wer: Annotated[bool, typer.Option("--no-wer", help="Time only, count no errors.")] = False,
    normalizer: Normalizer = "basic",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first clips.")] = None,
    threads: Threads = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two reports, the old one first: say what changed, and measure nothing."),
    ] = None,
    max_slowdown: Annotated[
        float, typer.Option(help="With --compare: percent that latency may rise.")
    ] = 10.0,
    max_growth: Annotated[
        float, typer.Option(help="With --compare: percent that size and memory may rise.")
    ] = 10.0,
    max_wer_rise: Annotated[
        float, typer.Option(help="With --compare: points that WER may rise.")
    ] = 0.3,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure latency, WER, size and memory, and write a report; or compare two reports."""
    from speechquant.pipeline.bench import BenchOptions, bench_or_compare
    from speechquant.pipeline.transcription import decoding_options

    bench_or_compare(
        bundles or [],
        data,
        out,
        compare,
        (max_slowdown, max_growth, max_wer_rise),
        BenchOptions(
            lengths=lengths,
            batch=batch,
            providers=providers,
            peers=peers,
            only_peers=only_peers,
            calibration=calibration,
            repeats=repeats,
            decoding=decoding_options(language, task, temperatures),
            counts_errors=not no_wer,
            normalizer=normalizer,
            limit=limit,
            threads=threads,
            force=force,
        ),
        as_json=json,
    )


@zoo_app.command("list")
def zoo_list(json: Json = False) -> None:
    """List the models that come with the package."""
    from speechquant.pipeline.zoo import run_list

    run_list(as_json=json)


@zoo_app.command("corpus")
def zoo_corpus(
    out: Annotated[
        Path, typer.Argument(help="Folder to write train, dev and test to.", readable=False)
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="Only this part; may be given again.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the synthetic corpus as FLAC files with manifests."""
    from speechquant.pipeline.zoo import run_corpus

    run_corpus(out, split, force=force, as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("demo-out"),
    json: Json = False,
) -> None:
    """Take zoo:hubert from checkpoint to W8A8, engines and a report."""
    from speechquant.pipeline.demo import run_demo

    run_demo(out, as_json=json)


def run_app(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors of the commands pass through."""
    show_logs()
    try:
        app(args=arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0
