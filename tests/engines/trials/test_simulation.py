"""The simulated graph against the real quantized one, and against NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.graphs import INPUT, OUTPUT
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.engines import open_session, quantize_bundle
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.onnxruntime.session import have_exact_products
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights


@pytest.fixture(scope="module")
def feeds(noise: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    return {"input_values": noise[None], "input_lengths": np.array([len(noise)])}


@pytest.fixture(scope="module")
def activations(tiny_bundle: Bundle, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    with ProbeSession(tiny_bundle, 1) as probe:
        return probe.run(feeds)


@pytest.fixture(scope="module")
def outputs(tiny_bundle: Bundle, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    with ProbeSession(tiny_bundle, 1, placement=OUTPUT) as probe:
        return probe.run(feeds)


def table_of(
    bundle: Bundle, activations: dict[str, NDArray[Any]], bits: int, placement: str = INPUT
) -> ScaleTable:
    # A little below the maximum, so that something is clipped.
    amax = {name: 0.8 * float(np.abs(values).max()) for name, values in activations.items()}
    highest = 2 ** (bits - 1) - 1
    layers = bundle.spec.activations(placement=placement)
    rows = {name: Scale(layers[name], value / highest, value) for name, value in amax.items()}
    bits_of_both = Bits(bits, bits)
    return ScaleTable(bundle.model_sha256, "max", bits_of_both, rows, placement=placement)


def test_a_probe_shows_what_the_graph_computes(
    tiny_bundle: Bundle, activations: dict[str, NDArray[Any]], noise: NDArray[np.float32]
) -> None:
    assert list(activations) == list(tiny_bundle.spec.layers)
    first = next(iter(activations.values()))
    assert np.array_equal(first.reshape(-1), noise)
    head = activations["head.input"][0]
    model = onnx.load(str(tiny_bundle.only_graph.model_path))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    feeds = {"input_values": noise[None], "input_lengths": np.array([len(noise)])}
    with open_session(tiny_bundle) as session:
        logits = session.run(feeds)["logits"][0]
    bias = [value for value in held.values() if value.shape == (logits.shape[1],)]
    expected = head @ held["head.weight"]
    assert min(np.abs(expected + b - logits).max() for b in bias) < 1e-4


def test_without_a_table_it_is_the_float_model(
    tiny_bundle: Bundle, feeds: dict[str, NDArray[Any]]
) -> None:
    with (
        open_session(tiny_bundle, threads=1) as session,
        SimulatedSession(tiny_bundle.only_graph, 1) as other,
    ):
        expected, simulated = session.run(feeds)["logits"], other.run(feeds)["logits"]
    np.testing.assert_allclose(simulated, expected, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 6, 8, 12, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_rounds_as_the_quantized_bundle_does(
    tiny_bundle: Bundle,
    activations: dict[str, NDArray[Any]],
    feeds: dict[str, NDArray[Any]],
    tmp_path: Path,
    bits: int,
    symmetric: bool,
) -> None:
    table = table_of(tiny_bundle, activations, bits)
    if not symmetric:
        rows = {
            name: replace(row, zero_point=2 ** (bits - 1) - 1)
            for name, row in table.tensors.items()
        }
        table = replace(table, tensors=rows, symmetric=False)
    compare(tiny_bundle, table, feeds, tmp_path)


@pytest.mark.parametrize("bits", [4, 6, 8, 12])
@pytest.mark.parametrize("float_layers", [(), ("conv.1", "block.0", "head")])
def test_it_rounds_outputs_as_the_quantized_bundle_does(
    tiny_bundle: Bundle,
    outputs: dict[str, NDArray[Any]],
    feeds: dict[str, NDArray[Any]],
    tmp_path: Path,
    bits: int,
    float_layers: tuple[str, ...],
) -> None:
    whole = table_of(tiny_bundle, outputs, bits, OUTPUT)
    rows = {name: row for name, row in whole.tensors.items() if row.layer not in float_layers}
    table = replace(whole, tensors=rows, float_layers=float_layers)
    compare(tiny_bundle, table, feeds, tmp_path)


def compare(
    tiny_bundle: Bundle, table: ScaleTable, feeds: dict[str, NDArray[Any]], folder: Path
) -> None:
    """Hold the simulated graph beside the quantized bundle."""
    bits = table.bits.activations
    bundle = quantize_bundle(tiny_bundle, folder / "quantized", table)
    # Without optimisation ONNX Runtime keeps Q, DQ and the float products apart, so that only the
    # rounding is compared and not the order of sums.
    options = onnxruntime.SessionOptions()
    have_exact_products(options)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        bundle.only_graph.model_path, options, providers=["CPUExecutionProvider"]
    )
    expected = session.run(["logits"], feeds)[0]
    weights = rounded_weights(tiny_bundle.only_graph, table, {})
    with SimulatedSession(
        tiny_bundle.only_graph, 1, weights, placement=table.placement
    ) as simulation:
        simulation.use(table)
        simulated = simulation.run(feeds)["logits"]
        simulation.use(None)
        unrounded = simulation.run(feeds)["logits"]
    # One value that a different order of sums tips over a half moves a whole step.
    close = np.abs(simulated - expected) < 1e-4
    assert close.mean() > 0.99 if bits > 4 else close.mean() > 0.9
    if bits <= 8:
        assert np.abs(unrounded - expected).max() > 10 * np.median(np.abs(simulated - expected))


def test_only_what_the_table_names_is_rounded(
    tiny_bundle: Bundle, activations: dict[str, NDArray[Any]], feeds: dict[str, NDArray[Any]]
) -> None:
    table = table_of(tiny_bundle, activations, 4)
    last = "head.input"
    only_head = replace(table, tensors={last: table.tensors[last]})
    head = activations[last][0]
    row = table.tensors[last]
    rounded = np.clip(np.rint(head / np.float32(row.scale)), -7, 7) * np.float32(row.scale)
    with SimulatedSession(tiny_bundle.only_graph, 1) as simulation:
        plain = simulation.run(feeds)["logits"][0]
        simulation.use(only_head)
        simulated = simulation.run(feeds)["logits"][0]
    model = onnx.load(str(tiny_bundle.only_graph.model_path))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = plain + (rounded - head) @ held["head.weight"]
    np.testing.assert_allclose(simulated, expected, atol=1e-4)


def test_a_rounded_output_is_rounded_for_all_that_reads_it(
    tiny_bundle: Bundle, outputs: dict[str, NDArray[Any]], feeds: dict[str, NDArray[Any]]
) -> None:
    table = table_of(tiny_bundle, outputs, 4, OUTPUT)
    only_logits = replace(table, tensors={"logits": table.tensors["logits"]})
    scale = np.float32(table.tensors["logits"].scale)
    expected = np.clip(np.rint(outputs["logits"] / scale), -7, 7) * scale
    with SimulatedSession(tiny_bundle.only_graph, 1, placement=OUTPUT) as simulation:
        simulation.use(only_logits)
        np.testing.assert_allclose(simulation.run(feeds)["logits"], expected, atol=1e-5)
        # Of a convolution's output the nonlinearity behind it reads the rounded values too: with
        # one level left, -1, 0 or 1 times the scale, next to nothing of the signal passes.
        first = next(iter(table.tensors))
        crushed = replace(table.tensors[first], scale=1e6)
        simulation.use(replace(table, tensors={first: crushed}))
        other = np.roll(feeds["input_values"], 5000)
        once = simulation.run(feeds)["logits"]
        again = simulation.run({**feeds, "input_values": other})["logits"]
    np.testing.assert_allclose(once, again, atol=1e-5)


def test_weights_of_float_layers_stay(
    tiny_bundle: Bundle, activations: dict[str, NDArray[Any]]
) -> None:
    table = replace(table_of(tiny_bundle, activations, 8), float_layers=("head", "conv.0"))
    names = rounded_weights(tiny_bundle.only_graph, table, {})
    assert not [name for name in names if name.startswith("head")]
    assert (
        len(names)
        == len(rounded_weights(tiny_bundle.only_graph, replace(table, float_layers=()), {})) - 2
    )
