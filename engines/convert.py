"""Bundles as other programs want them; each program is a function in WRITERS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechquant.core.bundles import Bundle
from speechquant.core.errors import BundleError, OptionError, choice_among
from speechquant.core.files import new_folder, read_text
from speechquant.core.onnx_files import require_packages
from speechquant.core.plain import parsed
from speechquant.core.seq2seq import ENCODER, PREFILL, TOKENIZER_FILE, Seq2SeqSpec

_MARK = "config.json"


def convert(bundle: Bundle, out: Path, program: str, *, force: bool = False) -> None:
    """Write a bundle's graphs and words into a folder as `program` wants them.

    Raises OptionError for a program that there is not, or that cannot run such a model.
    """
    if program not in WRITERS:
        raise OptionError(f"no program {program!r}; {choice_among(program, WRITERS)}")
    require_packages("converting a bundle")
    write = WRITERS[program]
    with new_folder(out, _MARK, force=force) as folder:
        write(bundle, folder)


def _write_for_onnx_asr(bundle: Bundle, folder: Path) -> None:
    """Write what onnx-asr's type `whisper` reads: the layout of optimum's export, without caches.

    It has no type for CTC models over waveforms, and always names a language.
    """
    if not isinstance(bundle.spec, Seq2SeqSpec) or not bundle.spec.generation.languages:
        raise OptionError(
            f"{bundle.folder}: onnx-asr has no type for CTC models over waveforms and none for "
            "Whisper models of English alone; give a multilingual Whisper bundle"
        )
    _write_renamed(
        bundle.graphs[ENCODER].model_path, folder / "encoder_model.onnx",
        {"features": "input_features", "hidden": "last_hidden_state"},
        outputs=("hidden",),
    )  # fmt: skip
    _write_renamed(
        bundle.graphs[PREFILL].model_path,
        folder / "decoder_model_merged.onnx",
        {"tokens": "input_ids", "hidden": "encoder_hidden_states"},
        outputs=("logits",),
    )
    tokenizer = parsed(read_text(bundle.folder / TOKENIZER_FILE, BundleError, "export it again"))
    added = {row["content"]: row["id"] for row in tokenizer["added_tokens"]}
    vocabulary = {
        token: number for token, number in tokenizer["model"]["vocab"].items() if token not in added
    }
    documents: dict[str, Any] = {
        "vocab.json": vocabulary,
        "added_tokens.json": added,
        _MARK: {"model_type": "whisper", "num_mel_bins": bundle.spec.features.mel_bins},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _write_renamed(
    source: Path, target: Path, names: Mapping[str, str], outputs: Sequence[str]
) -> None:
    """Write a graph with other names for its inputs and outputs, and with these outputs alone."""
    import onnx_ir as ir

    model = ir.load(source)
    graph = model.graph
    kept = [value for value in graph.outputs if value.name in outputs]
    graph.outputs[:] = kept
    for value in [*graph.inputs, *graph.outputs]:
        value.name = names.get(value.name or "", value.name)
    ir.save(model, target, external_data=f"{target.name}.data")


WRITERS: dict[str, Callable[[Bundle, Path], None]] = {"onnx-asr": _write_for_onnx_asr}
