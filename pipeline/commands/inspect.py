"""The command inspect: what a bundle, an engine or a scale table holds, as text, JSON, pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from speechquant.benchmarks.pictures.amplitudes import TensorAmplitudes, draw_distributions
from speechquant.benchmarks.pictures.search import draw_layer_effects, draw_percentiles
from speechquant.benchmarks.search import Search, read_search
from speechquant.calibrators.collection import STATISTICS_FILE
from speechquant.calibrators.histogram import Histogram
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.ctc import MODEL
from speechquant.core.engine_folders import Engine, is_engine, load_engine
from speechquant.core.errors import BundleError, OptionError
from speechquant.core.files import refuse_unwritable
from speechquant.core.scales import SCALES_FILE, ScaleTable, quantizes_attention, read_scales
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.engines.graphs.stored_weights import stored_weights
from speechquant.engines.tensorrt.layers import (
    INT8,
    OTHER,
    EngineLayer,
    LayerReport,
    layer_report,
)
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.build import engine_facts, print_heading, print_products
from speechquant.pipeline.commands.export import bundle_facts
from speechquant.pipeline.console import print_json, print_table
from speechquant.recipes.facts import table_facts, table_summary


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
    json: options.Json = False,
) -> None:
    """Show what a bundle, an engine or a scale table holds and what it was made from."""
    if source.is_file():
        if pictures is not None:
            raise OptionError(f"{source}: pictures need the bundle that was made with it")
        _show_table(read_scales(source), {"scales": str(source)}, as_json=json)
        return
    if not source.exists():
        raise BundleError(f"{source}: no such bundle, engine or scale table; check the path")
    if is_engine(source):
        if pictures is not None:
            raise OptionError(f"{source}: pictures need the bundle that it was built from")
        _show_engine(load_engine(source), as_json=json)
        return
    bundle = load_bundle(source)
    if isinstance(bundle.spec, Seq2SeqSpec):
        if pictures is not None:
            raise OptionError(f"{source}: a Whisper bundle has no pictures yet; leave them away")
        _show_seq2seq(bundle, as_json=json)
        return
    facts = bundle_facts(bundle)
    if pictures is not None:
        facts["pictures"] = [str(path) for path in draw_pictures(bundle, pictures)]
    _show_with_scales(bundle, facts, as_json=json)


def _show_seq2seq(bundle: Bundle, *, as_json: bool) -> None:
    facts = bundle_facts(bundle)
    if not as_json:
        facts["languages"] = len(facts["languages"]) or "one"
        del facts["graphs"]
    _show_with_scales(bundle, facts, as_json=as_json)


def _show_with_scales(bundle: Bundle, facts: dict[str, Any], *, as_json: bool) -> None:
    scales = bundle.folder / SCALES_FILE
    if scales.is_file():
        _show_table(read_scales(scales), facts, as_json=as_json)
    elif as_json:
        print_json(facts)
    else:
        _print_facts(facts)


def _show_engine(engine: Engine, *, as_json: bool) -> None:
    facts = engine_facts(engine)
    reports = [
        (graph, report)
        for graph in engine.graphs.values()
        if (report := layer_report(graph)) is not None
    ]
    if as_json:
        for graph, report in reports:
            own = facts if graph.name == MODEL else facts["graphs"][graph.name]
            own["engine_layers"] = [
                {**asdict(layer), "precision": layer.precision} for layer in report.layers
            ]
        print_json(facts)
        return
    facts.pop("products", None)
    graphs = facts.pop("graphs", {})
    source = engine.manifest.source
    facts["source"] = f"{source['precision']} {source['model_sha256'][:12]}"
    facts.update({name: _brief(row) for name, row in graphs.items()})
    _print_facts({key: value for key, value in facts.items() if value not in (None, {})})
    for graph, report in reports:
        print_heading(graph)
        _print_report(report)


def _brief(graph: dict[str, Any]) -> dict[str, Any]:
    """Return what one line may say of a graph."""
    kept = {key: graph[key] for key in ("engine_file", "limits", "layers") if graph.get(key)}
    return {**kept, "float32 nodes": len(graph["float32_nodes"])}


def _print_report(report: LayerReport) -> None:
    print()
    _print_layers(report)
    print()
    print_products(report)
    left = [placed for placed in report.placed() if placed.falls_back]
    for placed in left:
        print(f"NOT INT8: {placed.product.node} runs in {placed.runs}")
    if not left and any(product.quantized for product in report.products):
        print("every product that the graph quantizes multiplies INT8 by INT8")


def _print_layers(report: LayerReport) -> None:
    quantized = {product.node for product in report.products if product.quantized}
    print_table(
        ["layer", "kind", "runs in", "takes", "makes", ""],
        [
            [
                _shortened(layer.name),
                layer.kind,
                layer.precision,
                _on_one_line(layer.inputs),
                _on_one_line(layer.outputs),
                "NOT INT8" if _falls_back(layer, quantized) else "",
            ]
            for layer in report.layers
            if layer.precision != OTHER
        ],
    )


def _falls_back(layer: EngineLayer, quantized: set[str]) -> bool:
    return layer.is_product and layer.precision != INT8 and not quantized.isdisjoint(layer.nodes)


def _shortened(name: str, most: int = 48) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        print(f"{key:<20} {_on_one_line(value)}")


def _on_one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_on_one_line(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_on_one_line, value)) or "none"
    return str(value)


def _show_table(table: ScaleTable, facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tensors = {name: asdict(row) for name, row in table.tensors.items()}
        # The table's own are those of the float model that it was made for.
        own = {f"table_{key}" if key in facts else key: v for key, v in table_facts(table).items()}
        print_json({**facts, **own, "tensors": tensors})
        return
    _print_facts(facts)
    print(f"\n{table_summary(table)}\n")
    print_table(
        ["layer", "activation", "scale", "zero point", "clipped above"],
        [
            [row.layer, name, f"{row.scale:.6g}", f"{row.zero_point}", f"{row.amax:.6g}"]
            for name, row in table.tensors.items()
        ],
    )


def draw_pictures(bundle: Bundle, folder: Path) -> list[Path]:
    """Draw what the bundle's own files tell: amplitudes and clips, and both stages of a search."""
    statistics = bundle.folder / STATISTICS_FILE
    if not statistics.is_file():
        raise OptionError(
            f"{bundle.folder}: no {STATISTICS_FILE} in it to draw from; "
            'make the bundle with "speechquant quantize --data"'
        )
    refuse_unwritable(folder / "x.png")
    drawn = [folder / "amplitudes.png"]
    table = read_scales(bundle.folder / SCALES_FILE)
    seen = ActivationStatistics.load(statistics)
    draw_distributions([*_activation_rows(bundle, table, seen), *_weight_rows(bundle)], drawn[0])
    search = read_search(bundle.folder)
    if search is not None:
        drawn += _draw_search(search, folder)
    return drawn


def _activation_rows(
    bundle: Bundle, table: ScaleTable, seen: ActivationStatistics
) -> list[TensorAmplitudes]:
    rows = []
    attention = quantizes_attention(table, bundle.spec)
    activations = bundle.spec.activations(attention=attention, placement=table.placement)
    for name, layer in activations.items():
        histogram = seen.tensors[name].histogram
        if histogram.range is None:
            continue
        # A tensor that stayed float clips nothing.
        clip = table.tensors[name].amax if name in table.tensors else histogram.amax
        rows.append(_amplitudes(name, layer, "activation", histogram, clip))
    return rows


def _weight_rows(bundle: Bundle) -> list[TensorAmplitudes]:
    rows = []
    for weight in stored_weights(bundle.only_graph):
        histogram = Histogram()
        histogram.add(weight.values)
        if histogram.range is not None:
            largest = float(np.abs(weight.values).max())
            rows.append(_amplitudes(weight.name, weight.layer, "weight", histogram, largest))
    return rows


def _amplitudes(
    name: str, layer: str, kind: Any, histogram: Histogram, clip: float
) -> TensorAmplitudes:
    return TensorAmplitudes(
        name=name,
        layer=layer,
        kind=kind,
        edges=histogram.edges,
        counts=histogram.counts,
        clip=clip,
        largest=histogram.amax,
    )


def _draw_search(search: Search, folder: Path) -> list[Path]:
    layers, percentiles = folder / "layers.png", folder / "percentiles.png"
    draw_layer_effects(search.effects, search.gamma_points, layers)
    draw_percentiles(search.points, search.percent, percentiles)
    return [layers, percentiles]
