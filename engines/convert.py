"""Bundles as other programs want them; each program is a function in WRITERS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.errors import BundleError, OptionError, choice_among
from speechquant.core.files import new_folder, read_text
from speechquant.core.onnx_files import require_packages
from speechquant.core.plain import parsed
from speechquant.core.seq2seq import ENCODER, PREFILL, TOKENIZER_FILE, Seq2SeqSpec

_MARK = "*model.onnx"  # a checkpoint has a config.json as well, and --force must leave it alone
_CONFIG = "config.json"
_MODEL_TYPES = {  # transformers' names
    "Wav2Vec2ForCTC": "wav2vec2",
    "HubertForCTC": "hubert",
    "WavLMForCTC": "wavlm",
    "Data2VecAudioForCTC": "data2vec-audio",
}


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
        _CONFIG: {"model_type": "whisper", "num_mel_bins": bundle.spec.features.mel_bins},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _write_for_optimum(bundle: Bundle, folder: Path) -> None:
    """Write what optimum's ORTModelForCTC reads. It gives no lengths: a clip counts as whole."""
    spec = bundle.spec
    if not isinstance(spec, CtcSpec):
        raise OptionError(
            f"{bundle.folder}: a Whisper bundle has caches and start tokens of its own, which "
            "optimum does not read; give a CTC bundle"
        )
    _write_without_lengths(bundle.only_graph.model_path, folder / "model.onnx")
    for name in spec.text_files:
        if name in bundle.files:
            shutil.copyfile(bundle.folder / name, folder / name)
    config = {
        "model_type": _MODEL_TYPES[spec.architecture],
        "architectures": [spec.architecture],
        "conv_kernel": spec.conv_kernels,
        "conv_stride": spec.conv_strides,
        "pad_token_id": spec.decoding.blank,
    }
    (folder / _CONFIG).write_text(json.dumps(config), encoding="utf-8")


def _write_without_lengths(source: Path, target: Path) -> None:
    """Write a graph that takes every clip of a batch to be as long as the batch."""
    import onnx_ir as ir

    model = ir.load(source)
    graph = model.graph
    waves, lengths = graph.inputs
    sizes = [ir.node("Shape", [waves], {"start": axis, "end": axis + 1}) for axis in (0, 1)]
    whole = ir.node("Expand", [sizes[1].outputs[0], sizes[0].outputs[0]])
    lengths.replace_all_uses_with(whole.outputs[0])
    graph.inputs.remove(lengths)
    graph.insert_before(graph[0], [*sizes, whole])
    ir.save(model, target, external_data=f"{target.name}.data")


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


WRITERS: dict[str, Callable[[Bundle, Path], None]] = {
    "onnx-asr": _write_for_onnx_asr,
    "optimum": _write_for_optimum,
}
