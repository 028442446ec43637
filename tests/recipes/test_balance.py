"""Balancing a whole bundle: the float function stays, and enormous channels cost no levels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import soundfile
from numpy.typing import NDArray
from shared_artifacts import SharedArtifacts
from tiny import tiny_model

from speechquant.calibrators.methods import BALANCED, MethodOptions
from speechquant.core.bundles import QUANTIZATION_FILE, Bundle, load_bundle, new_bundle
from speechquant.core.errors import OptionError
from speechquant.core.graphs import OUTPUT
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits
from speechquant.core.seq2seq import ENCODER, Seq2SeqSpec
from speechquant.core.wer import score_wer
from speechquant.engines.balance import weights_by_activation
from speechquant.engines.ctc.output_distance import OutputDistance
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.graph_files import copy_other_files, save_graph_files
from speechquant.engines.graphs.channel_division import ChannelChange, balance_channels
from speechquant.recipes.balance import balance
from speechquant.recipes.calibrate import CalibrationRequest, calibrate
from speechquant.recipes.data import ClipList
from speechquant.recipes.evaluate import Evaluation
from speechquant.recipes.guard import Guard, Outcome
from speechquant.recipes.quantize import QuantizeOptions, quantize

RATE_HZ = 16_000
LARGE = "layers.0.feed_forward.fc2.input"  # of the encoder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipList:
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    paths = [folder / f"{index}.wav" for index in range(3)]
    for path in paths:
        soundfile.write(path, 0.1 * rng.standard_normal(RATE_HZ), RATE_HZ)
    return ClipList(tuple(LabelledClip(path, None) for path in paths))


@pytest.fixture(scope="module")
def spoiled(whisper_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny Whisper with two enormous channels, and the same function."""
    out = tmp_path_factory.mktemp("spoiled") / "bundle"
    graphs = {}
    for graph in whisper_bundle.graphs.values():
        model = ir.load(graph.model_path)
        if graph.name == ENCODER:
            size = model.graph.initializers["layers.0.feed_forward.fc2.weight"].shape[0]
            divisors = np.ones(int(size), np.float32)
            divisors[[3, 7]] = 1 / 256
            balance_channels(model, graph.spec, {LARGE: ChannelChange(divisors)})
        graphs[graph.model_path.name] = ir.external_data.load_to_model(model)
    with new_bundle(out, whisper_bundle.spec, whisper_bundle.made_from) as folder:
        save_graph_files(graphs, folder)
        copy_other_files(whisper_bundle, folder)
    return load_bundle(out)


def request_for(bundle: Bundle, clips: ClipList, method: str = BALANCED) -> CalibrationRequest:
    options = MethodOptions(method, symmetric=True)
    return CalibrationRequest(bundle, clips, method=options, keep_float=(), threads=1)


def hidden(bundle: Bundle) -> NDArray[np.float32]:
    mels = bundle.spec_as(Seq2SeqSpec).features.mel_bins
    # Within what the clips' features are, so that nothing is clipped.
    features = np.random.default_rng(2).uniform(-0.3, 0.3, (1, mels, 200)).astype(np.float32)
    path = bundle.graphs[ENCODER].model_path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["hidden"], {"features": features})[0])


def error(bundle: Bundle, reference: Bundle) -> float:
    expected = hidden(reference)
    return float(np.linalg.norm(hidden(bundle) - expected) / np.linalg.norm(expected))


def test_balancing_keeps_the_float_function(
    spoiled: Bundle, clips: ClipList, tmp_path: Path
) -> None:
    balanced = balance(request_for(spoiled, clips), tmp_path)
    assert balanced.balances[LARGE].is_needed
    assert balanced.bundle.model_sha256 != spoiled.model_sha256
    np.testing.assert_allclose(hidden(balanced.bundle), hidden(spoiled), rtol=1e-5, atol=1e-5)


def test_enormous_channels_cost_balanced_little_and_max_much(
    whisper_bundle: Bundle, spoiled: Bundle, clips: ClipList, tmp_path: Path
) -> None:
    errors = {}
    for method in (BALANCED, "max"):
        made = quantize(request_for(spoiled, clips, method), QuantizeOptions(tmp_path / method))
        errors[method] = error(made.bundle, whisper_bundle)
    assert errors[BALANCED] < errors["max"] / 2


def test_the_bundle_says_what_was_balanced(
    spoiled: Bundle, clips: ClipList, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = quantize(request_for(spoiled, clips), QuantizeOptions(out))
    report = json.loads((out / QUANTIZATION_FILE).read_text())
    row = report["balance"][LARGE]
    assert row["largest_divisor"] >= 16 or row["kept_channels"]
    assert row["error"] < row["error_before"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the work is gone
    assert made.bundle.made_from["parent"]["made_from"]["balanced_from"] == spoiled.model_sha256


def test_a_table_alone_is_refused(spoiled: Bundle, clips: ClipList, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="changes the graph"):
        calibrate(request_for(spoiled, clips), tmp_path)


def test_the_shared_bundle_is_not_altered(shared: SharedArtifacts, whisper_bundle: Bundle) -> None:
    assert whisper_bundle.folder not in shared.altered()


def evaluated(texts: list[str]) -> Evaluation:
    words = score_wer(["one two three four"] * len(texts), texts)
    return Evaluation(words, words, (), "basic", 1.0, 1.0)


@pytest.mark.parametrize(("heard", "is_warned"), [("one", True), ("one two three for", False)])
def test_a_broken_bundle_is_warned_of(
    spoiled: Bundle,
    clips: ClipList,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    heard: str,
    is_warned: bool,
) -> None:
    right = "one two three four"
    outcome = Outcome(evaluated([right] * 40), evaluated([heard, *[right] * 39]))
    if is_warned:
        outcome = Outcome(evaluated([right] * 40), evaluated([heard] * 40))
    monkeypatch.setattr(Guard, "outcome_of", lambda guard, table: outcome)
    with_texts = ClipList(tuple(replace(clip, text=right) for clip in clips.listed))
    request = request_for(spoiled, with_texts, "entropy")
    quantize(request, QuantizeOptions(tmp_path / "out"))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("entropy costs 75.00 points" in message for message in warnings) == is_warned


def test_of_a_ctc_model_ranges_are_cut_where_products_err_least(
    tiny_bundle: Bundle, clips: ClipList, tmp_path: Path
) -> None:
    method = MethodOptions(BALANCED, Bits(6, 6), symmetric=True)
    request = CalibrationRequest(tiny_bundle, clips, method=method)
    made = balance(request, tmp_path)
    whole = MethodOptions("max", Bits(6, 6))
    full = calibrate(replace(request, method=whole), tmp_path / "max").table.tensors
    convolutions = [name for name in full if ".conv" in name]
    assert convolutions
    shares = {name: made.table.tensors[name].amax / full[name].amax for name in convolutions}
    assert all(0.05 < share <= 1.000001 for share in shares.values())
    assert min(shares.values()) < 0.95


def test_fitted_ranges_bring_the_outputs_nearer_and_are_kept(
    tiny_bundle: Bundle, clips: ClipList, tmp_path: Path
) -> None:
    method = MethodOptions(BALANCED, Bits(4, 4), symmetric=False)
    four = ClipList((*clips.listed, clips.listed[0]))
    request = CalibrationRequest(tiny_bundle, four, method=method, threads=1, fit_clips=2)
    made = balance(request, tmp_path)
    fit = made.fit
    assert fit is not None and fit.moved and fit.after < fit.before
    plain = balance(replace(request, fit_clips=None), tmp_path)
    heard = [four.listed[0], four.listed[2]]  # evenly spread
    distance = OutputDistance(plain.bundle, plain.table, heard, 1)
    assert distance(plain.table) == pytest.approx(fit.before)
    assert distance(made.table) == pytest.approx(fit.after)
    assert distance(plain.table, bound=fit.after) == math.inf
    # All is kept: what is measured once more would change the time of the file.
    (kept,) = tmp_path.glob("fit-*.json")
    before = kept.stat().st_mtime_ns
    assert balance(request, tmp_path).fit == fit and kept.stat().st_mtime_ns == before
    written = quantize(request, QuantizeOptions(tmp_path / "out"))
    assert written.report["fit"] == {
        "before": fit.before, "after": fit.after, "moved": list(fit.moved),
    }  # fmt: skip
    assert not (tmp_path / "out.work").exists()


def test_what_a_convolution_reads_times_its_weight_and_its_bias_are_what_it_gives(
    tiny_bundle: Bundle, clips: ClipList
) -> None:
    read = weights_by_activation(tiny_bundle)
    wave = 0.1 * np.random.default_rng(0).standard_normal((1, RATE_HZ // 4)).astype(np.float32)
    feeds = {"input_values": wave, "input_lengths": np.array([wave.size])}
    with (
        ProbeSession(tiny_bundle, 1) as probe,
        ProbeSession(tiny_bundle, 1, placement=OUTPUT) as after,
    ):
        inputs, outputs = probe.run(feeds), after.run(feeds)
    module = "feature_extractor.conv_layers.1.conv"
    convolution = read[f"{module}.input"].convolution
    assert convolution is not None
    values = inputs[f"{module}.input"]
    windows = np.lib.stride_tricks.sliding_window_view(values[0], convolution.steps, axis=1)
    rows = (
        windows[:, :: convolution.stride]
        .transpose(1, 0, 2)
        .reshape(-1, convolution.weight.shape[1])
    )
    given = outputs[f"{module}.output"][0].T
    expected = rows @ convolution.weight[0] + convolution.bias
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_the_norm_behind_a_convolution_is_that_of_the_checkpoint(shared: SharedArtifacts) -> None:
    variant = "wav2vec2-group"
    layers = tiny_model(variant).base_model.feature_extractor.conv_layers
    read = weights_by_activation(shared.bundle(variant))
    found = [
        read[f"feature_extractor.conv_layers.{index}.conv.input"].convolution for index in (0, 1)
    ]
    norms = [each.norm for each in found if each is not None]
    assert norms[0] is not None
    np.testing.assert_array_equal(norms[0].gain, layers[0].layer_norm.weight.detach().numpy())
    np.testing.assert_array_equal(norms[0].offset, layers[0].layer_norm.bias.detach().numpy())
    assert norms[0].epsilon == pytest.approx(layers[0].layer_norm.eps)
    assert norms[1:] == [None]
