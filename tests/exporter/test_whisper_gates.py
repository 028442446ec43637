"""Gated checkpoints: what a gate computes, and that every later step takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import soundfile
import torch
from quantized import whisper_w8a8
from tiny_whisper import save_tiny_whisper

from speechquant.core.bundles import Bundle
from speechquant.core.errors import CheckpointError
from speechquant.core.manifests import LabelledClip
from speechquant.engines.onnxruntime.graph import cpu_model
from speechquant.engines.probes import open_module_probe
from speechquant.exporter.export import export_with_parity, is_whisper
from speechquant.exporter.gate_kinds import GATES_KEY, HEAD_GATES, TOKEN_GATES
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.exporter.whisper_gates import Gate, attach_gates
from speechquant.pipeline.command import run

ATTENTIONS = 2 + 2 * 2  # of two layers of encoder and decoder


# Each kind is an export of its own; the paper's is the one that every run makes.
@pytest.fixture(
    scope="module", params=[TOKEN_GATES, pytest.param(HEAD_GATES, marks=pytest.mark.slow)]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    # Heads of 64, as in the published models: of narrower ones an engine fuses no attention.
    shape = {"d_model": 128, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    checkpoint = save_tiny_whisper(folder / "checkpoint", gates=request.param, **shape)
    bundle, parity = export_with_parity(checkpoint, folder / "bundle")
    return checkpoint, bundle, parity


def gate_in_float64(gate: Gate, hidden: np.ndarray, gathered: np.ndarray) -> np.ndarray:
    """Gate head by head, as equation 4 of the paper has it."""
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (gate.weight, gate.bias))
    heads, width = weight.shape
    result = gathered.astype(np.float64)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        share = 1 / (1 + np.exp(-(hidden[..., own] @ weight[head] + bias[head])))
        result[..., own] *= share[..., None]
    return result


@pytest.mark.parametrize("heads", [1, 4])
def test_a_gate_multiplies_each_token(heads: int) -> None:
    rng = np.random.default_rng(0)
    hidden, gathered = rng.standard_normal((2, 3, 5, 32)).astype(np.float32)
    gate = Gate(heads, 32)
    first = gate(torch.from_numpy(hidden), torch.from_numpy(gathered)).detach().numpy()
    assert first == pytest.approx(0.9 * gathered, abs=1e-6)  # nearly open
    gate.weight.data = torch.from_numpy(rng.standard_normal((heads, 32 // heads))).float()
    gate.bias.data = torch.from_numpy(rng.standard_normal(heads)).float()
    found = gate(torch.from_numpy(hidden), torch.from_numpy(gathered)).detach().numpy()
    assert found == pytest.approx(gate_in_float64(gate, hidden, gathered), abs=1e-5)


def test_gates_are_attached_to_every_attention(tiny_whisper: Path) -> None:
    model = load_whisper(str(tiny_whisper)).model
    attach_gates(model, "token")
    gates = [name for name, _ in model.named_parameters() if name.endswith(".gate.weight")]
    assert len(gates) == ATTENTIONS
    assert sum(".encoder_attn." in name for name in gates) == 2
    assert getattr(model.config, GATES_KEY) == "token"


def test_an_exported_checkpoint_computes_what_torch_does(
    exported: Any, whisper_bundle: Bundle
) -> None:
    checkpoint, bundle, parity = exported
    assert is_whisper(str(checkpoint))
    assert all(row.is_close for row in parity)
    model = load_whisper(str(checkpoint)).model
    kind = getattr(model.config, GATES_KEY)
    weight = model.model.decoder.layers[1].encoder_attn.gate.weight
    assert len(weight) == {"token": 1, "head": 2}[kind]
    # A gate is no layer of its own, and shares no quantized input.
    assert bundle.spec.layers == whisper_bundle.spec.layers


def test_gates_change_what_a_model_gives(exported: Any) -> None:
    model = load_whisper(str(exported[0])).model
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 80, 200))).float()
    with torch.inference_mode():
        gated = model.model.encoder(features).last_hidden_state
        for name, parameter in model.named_parameters():
            if name.endswith(".gate.bias"):
                parameter.data += 100.0  # wide open
        opened = model.model.encoder(features).last_hidden_state
    assert float((gated - opened).abs().max()) > 0.01


def test_a_quantized_graph_keeps_its_fused_attention(exported: Any, tmp_path: Path) -> None:
    bundle: Bundle = exported[1]
    quantized = whisper_w8a8(bundle, tmp_path / "w8a8")
    encoder = quantized.graphs["encoder"]
    counts = [node.op_type for node in cpu_model(encoder).graph]
    assert counts.count("MultiHeadAttention") == 2
    assert counts.count("Softmax") == 0
    assert counts.count("MatMulIntegerToFloat") == 2 + 2 * 6  # convolutions, products
    # The gates stay float: each block's input is quantized once, and the gated values once.
    graph = ir.load(encoder.model_path).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph) == len(encoder.spec.layers)


def test_an_engine_keeps_its_fused_attention(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs speechquant[tensorrt-rtx]")
    quantized, engine = whisper_w8a8(exported[1], tmp_path / "w8a8"), str(tmp_path / "engine")
    backend = ["--backend", "tensorrt-rtx", "--target", "sm86"]
    assert run(["build", str(quantized.folder), engine, *backend, "--float-type", "fp16"]) == 0
    capsys.readouterr()
    assert run(["inspect", engine, "--json"]) == 0
    for graph in json.loads(capsys.readouterr().out)["graphs"].values():
        rows = {row["what"]: row for row in graph["products"]}
        assert rows["matmul of activations"]["runs"] == "FP16, fused attention"
        assert rows["matmul with weights"]["fall_back"] == 0


def test_outliers_finds_gated_attentions(exported: Any, tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000
    )
    with open_module_probe(exported[1], 1) as probe:
        assert len(probe.attentions) == ATTENTIONS
        probe.outputs_of(LabelledClip(tmp_path / "a.wav", None))
        head = probe.attention_of("decoder.layers.1.self_attn.out_proj", 0)
    assert head.probabilities @ head.values == pytest.approx(head.mixed, abs=1e-5)


@pytest.mark.parametrize(("kind", "said"), [("clipped", "'clipped'"), (None, "None")])
def test_gates_of_an_unknown_kind(tmp_path: Path, kind: str | None, said: str) -> None:
    checkpoint = save_tiny_whisper(tmp_path / "checkpoint", gates="token")
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["GatedWhisperForConditionalGeneration"]
    assert config[GATES_KEY] == "token"
    (checkpoint / "config.json").write_text(json.dumps({**config, GATES_KEY: kind}))
    message = f"config.json: attention_gates is {said}; token and head are known"
    with pytest.raises(CheckpointError, match=message):
        load_whisper(str(checkpoint))
