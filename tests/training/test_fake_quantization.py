from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized import table_from_noise
from tiny import tiny_model
from torch import nn

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import ScaleError
from speechquant.core.scales import Bits, Scale, ScaleTable, read_scales
from speechquant.engines.graphs.weights import quantize_weight
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights
from speechquant.training.fake_quantization import (
    FakeQuantization,
    LearnedStep,
    RoundedWeight,
    fake_quantized,
)

RATE_HZ = 16_000


def test_the_gradients_are_those_of_learned_step_size_quantization() -> None:
    values = torch.tensor([0.3, -1.26, 5.0, -9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    rounded = fake_quantized(values, scale, 7)
    assert rounded.tolist() == [0.5, -1.5, 3.5, -3.5]
    rounded.sum().backward()
    # Within the range the values' gradient passes and the scale's is round(v/s) - v/s.
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    expected = (1 - 0.6) + (-3 + 2.52) + 7 - 7
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(expected, abs=1e-5)


def test_a_learned_step_is_damped_by_the_values_and_levels_that_share_it() -> None:
    step = LearnedStep(0.5, bits=4)
    values = torch.tensor([[0.3, -1.26, 5.0, 6.0]])
    step(values).sum().backward()
    by_scale = (1 - 0.6) + (-3 + 2.52) + 7 + 7
    expected = by_scale * 0.5 / np.sqrt(4 * 7)  # times the scale, whose logarithm is learned
    assert step.log_scale.grad is not None
    assert step.log_scale.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(5, 7), (6, 3, 4)])
def test_weights_are_rounded_as_bundles_round_them(bits: int, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[2] = 0  # a dead channel
    expected = quantize_weight(weight, 0, bits).dequantized
    found = RoundedWeight(bits)(torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def name_in_table(module: str) -> str:
    return "head" if module == "lm_head" else module.split(".", 1)[1]


def test_the_model_computes_what_the_simulated_graph_does(tiny_bundle: Bundle) -> None:
    # One activation at a time: where all are rounded, sums in another order tip values over a half,
    # which moves them a whole step, and from layer to layer more of them.
    whole = table_from_noise(tiny_bundle, Bits(6, 6))
    noise = np.random.default_rng(3).standard_normal((1, RATE_HZ // 2)).astype(np.float32)
    model, wave = tiny_model("hubert-layer"), torch.from_numpy(noise)
    feeds = {"input_values": noise, "input_lengths": np.array([noise.size])}
    with torch.inference_mode():
        in_float = model(wave).logits.numpy()
    every_weight = rounded_weights(tiny_bundle.only_graph, whole, {})
    for name, read in {
        "feature_extractor.conv_layers.1.conv.input": ["feature_extractor.conv_layers.1.conv"],
        "encoder.pos_conv_embed.conv.input": ["encoder.pos_conv_embed.conv"],
        "encoder.layers.0.attention.q_proj.input": [
            f"encoder.layers.0.attention.{part}_proj" for part in "qkv"
        ],
        "head.input": ["head"],
    }.items():
        table = replace(whole, tensors={name: whole.tensors[name]})
        rounding = FakeQuantization(model, table, name_in_table, lambda: model(wave))
        with torch.no_grad():
            found = model(wave).logits.numpy()
        assert rounding.table.tensors[name].scale == pytest.approx(table.tensors[name].scale)
        weights = {f"{module}.weight": every_weight[f"{module}.weight"] for module in read}
        with SimulatedSession(tiny_bundle.only_graph, 1, weights) as simulation:
            simulation.use(table)
            expected = simulation.run(feeds)["logits"]
        assert (np.abs(found - expected) < 1e-4).mean() > 0.9
        assert np.abs(found - in_float).mean() > 10 * np.abs(found - expected).mean()
        rounding.remove()
    with torch.inference_mode():
        np.testing.assert_allclose(model(wave).logits.numpy(), in_float, atol=1e-5)


def test_a_table_of_another_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    table = ScaleTable("m", "max", Bits(), {"1.input": Scale("head", 0.1, 12.7)})
    with pytest.raises(ScaleError, match=r"no module of the model reads 1\.input"):
        FakeQuantization(model, table, str, lambda: model(torch.zeros(1, 2)))


@pytest.mark.parametrize(
    "options", [{"symmetric": False}, {"weight_scales": "tensor"}, {"float_activations": ("head",)}]
)
def test_rounding_that_is_not_trained_is_refused(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    table = ScaleTable("m", "ema", Bits(), {"0.input": Scale("head", 0.1, 12.7)}, **options)
    with pytest.raises(ScaleError, match="not trained; calibrate without these options"):
        FakeQuantization(model, table, str, lambda: model(torch.zeros(1, 2)))


def test_training_learns_a_scale_that_was_far_too_large() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4))
    rows = {"0.input": Scale("head", 2.0, 14.0)}
    table = ScaleTable("m", "max", Bits(8, 4), rows)
    given = torch.randn(256, 8)
    wanted = model(given).detach()
    rounding = FakeQuantization(model, table, str, lambda: model(given))
    first = (model(given) - wanted).square().mean().item()
    optimizer = torch.optim.Adam(rounding.steps.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (model(given) - wanted).square().mean().backward()
        optimizer.step()
    last = (model(given) - wanted).square().mean().item()
    assert last < first / 10
    learned = rounding.table.tensors["0.input"]
    assert 0.2 < learned.scale < 0.8
    assert learned.amax == pytest.approx(7 * learned.scale)
    assert replace(rounding.table, tensors=rows) == table


@pytest.mark.slow
def test_a_short_run_leaves_a_checkpoint_that_exports(tmp_path: Path) -> None:
    from speechquant.exporter.ctc import export
    from speechquant.training.samples import Sample
    from speechquant.zoo.models import TRAINED_MODELS
    from speechquant.zoo.train_quantized import QuantizedRun, Settings, load_for_training

    bundle = export(TRAINED_MODELS / "hubert", tmp_path / "float")
    table = table_from_noise(bundle)
    model = load_for_training(TRAINED_MODELS / "hubert")
    run = QuantizedRun("hubert", model, tmp_path / "run", Settings(), table)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("{}")
    noise = np.random.default_rng(0).integers(-3000, 3000, RATE_HZ).astype(np.int16)
    run.note(loss=run.train_on([Sample(noise, "one two")]))
    run.finish()
    trained = load_bundle(tmp_path / "run" / "bundle")
    assert trained.spec.layers == bundle.spec.layers
    assert trained.model_sha256 != bundle.model_sha256
    learned = read_scales(tmp_path / "run" / "scales.json")
    assert quantize_bundle(trained, tmp_path / "w8a8", learned).spec.precision == "w8a8"
