"""How the graphs of a new bundle are written, and what else of the old one is copied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.bundles import Bundle
from speechquant.core.onnx_files import save_graph, save_graphs_together
from speechquant.core.seq2seq import DECODER_DATA, DECODERS
from speechquant.core.specs import graph_file, is_graph_file
from speechquant.core.weights import TRAINED_WEIGHTS_FILE

if TYPE_CHECKING:
    import onnx_ir as ir


def save_graph_files(graphs: Mapping[str, ir.Model], folder: Path) -> None:
    """Write graphs by file name; those of a decoder share one file of weights."""
    decoders = {graph_file(name) for name in DECODERS} & graphs.keys()
    for name in graphs.keys() - decoders:
        save_graph(graphs[name], folder / name)
    if decoders:
        models = {folder / name: graphs[name] for name in sorted(decoders)}
        save_graphs_together(models, folder / DECODER_DATA)


def copy_other_files(bundle: Bundle, folder: Path) -> None:
    """Copy what of a bundle is neither graph nor weights.

    Levels that the weights were trained with are not those of other weights; where the new bundle
    has them, they are in its graphs.
    """
    for name in bundle.files:
        if not is_graph_file(name) and name != TRAINED_WEIGHTS_FILE:
            put_file(bundle.folder / name, folder / name)


def put_file(content: bytes | Path, path: Path) -> None:
    """Write or copy a file, its folder made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
