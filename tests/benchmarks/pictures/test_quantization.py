from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from speechquant.benchmarks.pictures.amplitudes import (
    BOX_SHARES,
    Kind,
    TensorAmplitudes,
    draw_distributions,
    figure_of_distributions,
)
from speechquant.benchmarks.pictures.search import (
    draw_layer_effects,
    draw_percentiles,
    figure_of_layer_effects,
    figure_of_percentiles,
)
from speechquant.benchmarks.pictures.style import DOTS_PER_INCH
from speechquant.benchmarks.search import LayerEffect, PercentilePoint
from speechquant.core.errors import CalibrationError, MissingPackageError, OptionError

GAMMA = 0.25
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def amplitudes(layer: str = "conv.0", kind: Kind = "activation", **given: Any) -> TensorAmplitudes:
    """Half of the values below 1, 49 % in 1..2, 1 % in 2..2.5; the top bin ends beyond the largest."""
    made = {
        "name": f"{layer}.{kind}",
        "edges": np.array([0.0, 1.0, 2.0, 3.0]),
        "counts": np.array([50, 49, 1]),
        "clip": 1.5,
        "largest": 2.5,
        **given,
    }
    return TensorAmplitudes(layer=layer, kind=kind, **made)


def layer_names(blocks: int) -> list[str]:
    convs = [f"conv.{index}" for index in range(7)]
    return [
        *convs,
        "feature_projection",
        "pos_conv",
        *(f"block.{i}" for i in range(blocks)),
        "head",
    ]


def model(blocks: int) -> list[TensorAmplitudes]:
    rows = []
    for layer in layer_names(blocks):
        rows += [amplitudes(layer)] * (4 if layer.startswith("block") else 1)
        rows += [amplitudes(layer, "weight", clip=2.5)] * (6 if layer.startswith("block") else 1)
    return rows


def effects(layers: list[str]) -> list[LayerEffect]:
    early = [LayerEffect(layer, -0.04, False, 0.18, bound=0.2) for layer in layers[2:]]
    return [
        LayerEffect(layers[0], 92.4, True, 0.05, bound=11.0),
        LayerEffect(layers[1], 0.31, True, 1.0),
        *early,
    ]


POINTS = [
    PercentilePoint(0.0, 0.95, 0.1),
    PercentilePoint(0.1, 0.0721, 1.0),
    PercentilePoint(0.2, 0.0702, 1.0),
    PercentilePoint(0.3, 0.0733, 0.4),
]


def collection(axes: Axes, label: str) -> Any:
    found = [item for item in axes.collections if item.get_label() == label]
    assert len(found) == 1
    return found[0]


def ticks_of(axes: Axes, label: str) -> list[float]:
    """Where the vertical strokes of this label stand."""
    segments = collection(axes, label).get_segments()
    assert all(low[0] == high[0] for low, high in segments)
    return [float(low[0]) for low, _ in segments]


def texts_at_rows(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


# --- numbers of a tensor ---


def test_quantiles_by_hand() -> None:
    # 99.9 % is nine tenths into the last bin, which ends at the largest value, 2.5.
    found = amplitudes().amplitudes_at([0.5, 0.99, 0.999, 0.9999])
    np.testing.assert_allclose(found, [1.0, 2.0, 2.45, 2.495], rtol=1e-9)


def test_quantiles_are_those_of_the_samples() -> None:
    values = np.abs(np.random.default_rng(0).standard_t(3, 50_000))
    counts, edges = np.histogram(values, 2048, (0, 2 * values.max()))
    row = amplitudes(edges=edges, counts=counts, clip=4.0, largest=float(values.max()))
    # A histogram knows each sample to within its bin.
    samples = np.quantile(values, BOX_SHARES, method="inverted_cdf")
    np.testing.assert_allclose(row.amplitudes_at(BOX_SHARES), samples, rtol=0, atol=edges[1])
    assert row.clipped_share == pytest.approx(np.mean(values > 4.0), abs=1e-3)


@pytest.mark.parametrize(
    ("clip", "share"), [(1.5, 0.5 - 0.49 / 2), (2.0, 0.01), (2.25, 0.005), (2.5, 0.0), (9.0, 0.0)]
)
def test_clipped_share_by_hand(clip: float, share: float) -> None:
    assert amplitudes(clip=clip).clipped_share == pytest.approx(share, abs=1e-12)


def test_a_share_met_exactly_ends_before_the_empty_bins() -> None:
    row = amplitudes(edges=np.arange(5.0), counts=np.array([50, 0, 0, 50]), largest=4.0)
    np.testing.assert_allclose(row.amplitudes_at([0.25, 0.5, 0.75]), [0.5, 1.0, 3.5])


def test_tail_ratio() -> None:
    assert amplitudes().tail_ratio == pytest.approx(2.5 / 2.45)
    assert amplitudes(counts=np.array([9, 0, 0]), largest=0.0, clip=0.0).tail_ratio == 1


def test_an_empty_histogram_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"conv\.0\.activation: an empty histogram"):
        figure_of_distributions([amplitudes(counts=np.zeros(3, dtype=np.int64))])


# --- distributions ---


def test_distributions_carry_the_numbers() -> None:
    rows = [
        amplitudes("conv.0"),
        amplitudes("block.0", largest=2.0, clip=2.0, counts=np.array([50, 50, 0])),
        amplitudes("block.0", clip=1.0),
        amplitudes("conv.0", "weight", clip=2.5),
    ]
    activations, weights = figure_of_distributions(rows).axes
    assert ticks_of(activations, "clip") == [1.5, 2.0, 1.0]
    assert ticks_of(activations, "largest") == [2.5, 2.0, 2.5]
    assert ticks_of(weights, "clip") == [2.5]
    boxes = [[(bar.get_x(), bar.get_width()) for bar in box] for box in activations.containers]
    expected = [(1.0, 1.0), (2.0, 0.45), (2.45, 0.045)]
    np.testing.assert_allclose([box[0] for box in boxes], expected)
    # Worst tensor of a layer: 50 % of its third tensor lies above 1.
    assert texts_at_rows(activations)[1:3] == [f"1.0 {TIMES}"] * 2
    assert [text for text in texts_at_rows(activations) if "%" in text][1:] == [
        "25.50 %",
        "50.00 %",
    ]
    assert activations.get_title("left").startswith("Activations: 2 of 2 layers clipped")
    assert weights.get_title("left").startswith("Weights: none of 1 layers clipped")


def test_tensors_of_a_layer_share_its_row_without_overlap() -> None:
    activations, axes = figure_of_distributions(model(2)).axes
    rows = layer_names(2)
    assert [label.get_text() for label in activations.get_yticklabels()] == rows
    spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.containers[0]]
    assert len(spans) == 10 + 2 * 6
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    in_row = [round((low + high) / 2) for low, high in spans]
    assert [in_row.count(row) for row in range(len(rows))] == [1] * 9 + [6, 6] + [1]


def test_a_tensor_of_zeros_and_a_model_without_weights_can_be_drawn() -> None:
    zeros = amplitudes("conv.1", counts=np.array([9, 0, 0]), largest=0.0, clip=0.0)
    activations, weights = figure_of_distributions([amplitudes(), zeros]).axes
    assert ticks_of(activations, "clip") == [1.5]
    assert "all zero" in texts_at_rows(activations)
    assert weights.get_title("left") == "Weights: none quantized"


# --- stage 1 ---


def test_layer_effects_carry_the_numbers() -> None:
    axes = figure_of_layer_effects(effects(layer_names(4)), GAMMA).axes[0]
    bars = [container[0] for container in axes.containers]
    assert [bar.get_width() for bar in bars] == [92.4, 0.31] + [-0.04] * 12
    assert [bool(bar.get_hatch()) for bar in bars] == [True, False] + [True] * 12
    colours = [to_hex(bar.get_edgecolor()) for bar in bars]
    assert len(set(colours[:2])) == len(set(colours[2:])) == 1
    assert colours[0] != colours[2]
    (threshold,) = [line for line in axes.lines if line.get_label() == "gamma"]
    assert list(threshold.get_xdata()) == [GAMMA, GAMMA]  # type: ignore[arg-type]
    bounds = [item for item in axes.collections if item.get_label() == "bound"]
    ends = [item.get_segments()[0][:, 0].tolist() for item in bounds]  # type: ignore[attr-defined]
    assert ends == [[11.0, 92.4]] + [[-0.04, 0.2]] * 12
    assert texts_at_rows(axes)[:4] == ["change", "+92.40", "+0.31", f"{MINUS}0.04"]


def test_layer_effects_say_how_many_layers_are_selected() -> None:
    figure = figure_of_layer_effects(effects(layer_names(4)), GAMMA)
    assert figure.get_suptitle().startswith("2 of 14 layers add more than 0.25 points")


@pytest.mark.parametrize(("largest", "scale"), [(0.9, "linear"), (92.0, "symlog")])
def test_one_bad_layer_does_not_flatten_the_others(largest: float, scale: str) -> None:
    rows = [LayerEffect("conv.0", largest, True, 1.0), LayerEffect("head", 0.0, False, 1.0)]
    axes = figure_of_layer_effects(rows, GAMMA).axes[0]
    assert axes.get_xscale() == scale
    assert "0.00" in texts_at_rows(axes)


# --- stage 2 ---


def test_percentiles_carry_the_numbers() -> None:
    upper, lower = figure_of_percentiles(POINTS, 0.2).axes
    offsets = {
        label: collection(upper, label).get_offsets().tolist()
        for label in ("full", "partial", "above", "chosen")
    }
    assert offsets["full"] == [[0.1, pytest.approx(7.21)], [0.2, pytest.approx(7.02)]]
    assert offsets["partial"] == [[0.3, pytest.approx(7.33)]]
    assert offsets["chosen"] == [[0.2, pytest.approx(7.02)]]
    # 3 x (median 7.27 - least 7.02) above the least is where the axis ends.
    assert offsets["above"] == [[0.0, pytest.approx(7.77)]]
    assert upper.get_ylim()[1] == pytest.approx(7.77)
    assert [bar.get_height() for bar in lower.patches] == pytest.approx([10, 100, 100, 40])  # type: ignore[attr-defined]


def test_hollow_means_not_every_utterance() -> None:
    upper = figure_of_percentiles(POINTS, 0.2).axes[0]
    faces = {
        label: {to_hex(face) for face in collection(upper, label).get_facecolors()}
        for label in ("full", "partial", "above")
    }
    assert faces["partial"] == faces["above"] == {"#ffffff"}
    assert "#ffffff" not in faces["full"]


def test_one_percentile_alone() -> None:
    figure = figure_of_percentiles([PercentilePoint(0.0, 0.08, 1.0)], 0.0)
    assert figure.get_suptitle() == "WER is least, 8.00 %, at p = 0 %"
    assert not len(collection(figure.axes[0], "above").get_offsets())


def test_a_chosen_percentile_without_a_point_is_refused() -> None:
    with pytest.raises(OptionError, match=r"percentile 0\.15 was chosen"):
        figure_of_percentiles(POINTS, 0.15)


# --- all of them ---


@pytest.mark.parametrize(
    "make", [lambda: figure_of_layer_effects([], 0.25), lambda: figure_of_distributions([]),
             lambda: figure_of_percentiles([], 0.0)],
)  # fmt: skip
def test_nothing_to_draw_is_refused(make: Callable[[], Figure]) -> None:
    with pytest.raises(OptionError, match="to draw; give at least one"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: figure_of_distributions(model(4)),
        lambda: figure_of_distributions(model(24)),
        lambda: figure_of_layer_effects(effects(layer_names(24)), GAMMA),
        lambda: figure_of_percentiles(POINTS, 0.2),
    ],
)
def test_no_text_overlaps_another_or_leaves_the_picture(make: Callable[[], Figure]) -> None:
    figure = make()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
        texts += [label for label in axes.get_xticklabels() if _is_drawn(label, axes, 0)]
        texts += [label for label in axes.get_yticklabels() if _is_drawn(label, axes, 1)]
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts
        if text.get_visible() and text.get_text()
    ]
    for (first, box), (second, other) in combinations(boxes, 2):
        assert not box.overlaps(other), (first, second)
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, name


def _is_drawn(label: Any, axes: Axes, direction: int) -> bool:
    """Whether a tick's label stands within its axis; matplotlib keeps labels beyond it too."""
    low, high = label.get_window_extent().get_points()[:, direction]
    start, end = axes.bbox.get_points()[:, direction]
    return bool(start - 1 <= (low + high) / 2 <= end + 1)


def draw_all(folder: Path, suffix: str) -> list[Path]:
    paths = [folder / f"{name}{suffix}" for name in ("amplitudes", "layers", "percentiles")]
    draw_distributions(model(2), paths[0])
    draw_layer_effects(effects(layer_names(2)), GAMMA, paths[1])
    draw_percentiles(POINTS, 0.2, paths[2])
    return paths


def test_png_files(tmp_path: Path) -> None:
    paths = draw_all(tmp_path, ".png")
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 5 * DOTS_PER_INCH <= width <= 12 * DOTS_PER_INCH
        assert 3 * DOTS_PER_INCH <= height <= 12 * DOTS_PER_INCH


def test_the_same_numbers_give_the_same_svg(tmp_path: Path) -> None:
    path = tmp_path / "stage2.svg"
    draw_percentiles(POINTS, 0.2, path)
    first = path.read_bytes()
    draw_percentiles(POINTS, 0.2, path)
    assert path.read_bytes() == first
    assert b"<svg" in first[:500]


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"stage2\.jpg: no such picture format"):
        draw_percentiles(POINTS, 0.2, tmp_path / "stage2.jpg")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'speechquant\[report\]'"):
        draw_percentiles(POINTS, 0.2, tmp_path / "stage2.png")
    assert not list(tmp_path.iterdir())
