"""From a float bundle and a scale table to a quantized bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.bundles import DESCRIPTION, Bundle, load_bundle, new_bundle, require_float
from speechquant.core.errors import OptionError
from speechquant.core.files import refuse_existing, refuse_unwritable
from speechquant.core.graphs import INPUT, OUTPUT, GraphSource
from speechquant.core.onnx_files import require_packages
from speechquant.core.progress import OnStep
from speechquant.core.scales import SCALES_FILE, ScaleTable, require_fit, scales_document
from speechquant.core.weights import Levels, Rounding
from speechquant.engines.graph_files import copy_other_files, put_file, save_graph_files
from speechquant.engines.graphs.embeddings import quantize_embeddings
from speechquant.engines.graphs.qdq import (
    QdqFormat,
    quantize_activations,
    quantize_attention,
    quantize_outputs,
    quantize_weights,
    quantized_nodes,
    refuse_unfit_format,
    weight_names,
)
from speechquant.engines.graphs.trained import trained_levels

if TYPE_CHECKING:
    import onnx_ir as ir

_TOOLS = ("speechquant", "numpy", "onnx", "onnx-ir")


@dataclass(frozen=True)
class QdqOptions:
    """How a quantized bundle is written.

    `rounded_weights` holds the levels, by weight, that are not to be rounded to nearest;
    `extra_files` are put into the bundle under their names.
    """

    qdq_format: QdqFormat = QdqFormat.U8
    rounded_weights: Mapping[str, Levels] = field(default_factory=dict)
    extra_files: Mapping[str, bytes | Path] = field(default_factory=dict)


def quantize_bundle(
    bundle: Bundle | str | Path,
    out: str | Path,
    table: ScaleTable,
    options: QdqOptions | None = None,
    *,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Bundle:
    """Write the float bundle, quantized as `table` says, as a new bundle, and return that.

    `on_step` counts weights. Raises BundleError, ScaleError, OptionError, OutputExistsError,
    StorageError, MissingPackageError; then nothing is written.
    """
    source, out, options = _loaded(bundle), Path(out), options or QdqOptions()
    extra_files, rounded_weights = options.extra_files, options.rounded_weights
    qdq_format = options.qdq_format
    _refuse_wrong_bundle(source, out)
    require_fit(table, source, "the scale table")
    refuse_unfit_format(table, qdq_format)
    _refuse_taken_names(extra_files, source)
    refuse_existing(out, DESCRIPTION, force=force)
    refuse_unwritable(out)
    require_packages("quantize")
    graphs = {
        graph.model_path.name: _quantized_graph(graph, table, qdq_format, rounded_weights, on_step)
        for graph in source.graphs.values()
    }
    made_from = _made_from(source, table, qdq_format, rounded_weights)
    spec = replace(source.spec, precision=table.bits.name.lower())
    with new_bundle(out, spec, made_from, force=force) as folder:
        save_graph_files(graphs, folder)
        copy_other_files(source, folder)
        (folder / SCALES_FILE).write_text(scales_document(table), encoding="utf-8")
        for name, content in extra_files.items():
            put_file(content, folder / name)
    return load_bundle(out)


def _loaded(bundle: Bundle | str | Path) -> Bundle:
    return load_bundle(Path(bundle)) if isinstance(bundle, str | Path) else bundle


def _refuse_wrong_bundle(bundle: Bundle, out: Path) -> None:
    require_float(bundle)
    if out.resolve() == bundle.folder.resolve():
        raise OptionError(
            f"{out}: is the float bundle itself, which every other table needs; choose another name"
        )


def _refuse_taken_names(extra_files: Mapping[str, bytes | Path], bundle: Bundle) -> None:
    taken = {DESCRIPTION, SCALES_FILE, *bundle.files} & set(extra_files)
    if taken:
        raise OptionError(
            f"{min(taken)}: the bundle has a file of that name already; call the extra file "
            "something else"
        )


def _quantized_graph(
    bundle: GraphSource,
    table: ScaleTable,
    qdq_format: QdqFormat,
    given: Mapping[str, Levels],
    on_step: OnStep | None,
) -> ir.Model:
    import onnx_ir as ir

    model = ir.load(bundle.model_path)
    nodes = quantized_nodes(model, bundle.spec, table.float_layers)
    trained, names = trained_levels(bundle.folder, table.bits.weights), weight_names(nodes)
    rounded: dict[str, Rounding] = {
        **{name: levels for name, levels in trained.items() if name in names},
        **given,
    }
    rounded_inputs = quantized_nodes(model, bundle.spec, table.layers_read_in_float)
    quantize_weights(
        model,
        nodes,
        table.bits.weights,
        rounded=rounded,
        shared_scale=table.has_shared_weight_scales,
        on_step=on_step,
    )
    if table.tensors:  # without any it is the float model, and the commands call it that
        quantize_embeddings(model, table.bits.weights)
    if table.placement == OUTPUT:
        quantize_outputs(model, bundle.spec, table, qdq_format)
    else:
        quantize_activations(model, rounded_inputs, table, qdq_format)
        quantize_attention(model, bundle.spec, table, qdq_format)
    # What stays float may still lie in the float bundle's data file.
    return ir.external_data.load_to_model(model)


def _rounding_of(bundle: Bundle, table: ScaleTable, rounded: Mapping[str, Levels]) -> str:
    if rounded:
        return "given"
    return "trained" if trained_levels(bundle.folder, table.bits.weights) else "nearest"


def _made_from(
    bundle: Bundle,
    table: ScaleTable,
    qdq_format: QdqFormat,
    rounded: Mapping[str, Levels],
) -> dict[str, Any]:
    placement = {} if table.placement == INPUT else {"placement": table.placement}
    return {
        "parent": {
            "model_sha256": bundle.model_sha256,
            "made_from": dict(bundle.made_from),
        },
        "scales": {"key": table.key, "method": table.method, **placement},
        "qdq_format": qdq_format.value,
        "weight_rounding": _rounding_of(bundle, table, rounded),
        "tools": {name: version(name) for name in _TOOLS},
    }
