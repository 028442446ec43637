from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from small_graphs import GraphOf, operators, run

from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.onnxruntime.attention import fuse_attention

HEADS, WIDTH, SCALE = 3, 4, 0.5
FEATURES = HEADS * WIDTH


def eager_attention(*, bias_dims: tuple[int | str, ...] = (2, 1, 1, "t")) -> ir.Model:
    graph = GraphOf()
    split = graph.constant("split", np.array([0, 0, HEADS, WIDTH]))
    perms = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    q, k, v = (
        graph.add(
            "Transpose", [graph.add("Reshape", [name, split], f"{name}4")], f"{name}h", perm=p
        )
        for name, p in perms.items()
    )
    scores = graph.add("MatMul", [q, k], "scores")
    scaled = graph.add("Mul", [scores, graph.constant("scale", np.float32(SCALE))], "scaled")
    weights = graph.add("Softmax", [graph.add("Add", [scaled, "bias"], "biased")], "p", axis=-1)
    mixed = graph.add("MatMul", [weights, v], "mixed")
    merged = graph.add("Transpose", [mixed], "merged", perm=[0, 2, 1, 3])
    graph.add("Reshape", [merged, graph.constant("join", np.array([0, 0, -1]))], "y")
    dims: dict[str, tuple[int | str, ...]] = dict.fromkeys("qkv", (2, "t", FEATURES))
    return graph.model({**dims, "bias": bias_dims}, "y", [2, "t", FEATURES])


def attention_in_float64(feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    def heads(name: str) -> NDArray[np.float64]:
        array = feeds[name].astype(np.float64)
        return array.reshape(*array.shape[:2], HEADS, WIDTH).transpose(0, 2, 1, 3)

    scores = heads("q") @ heads("k").swapaxes(-1, -2) * SCALE + feeds["bias"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ heads("v")
    return mixed.transpose(0, 2, 1, 3).reshape(*feeds["q"].shape)


@pytest.mark.parametrize("frames", [1, 7, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_both_branches_give_the_softmax_of_the_paper(frames: int, masked: bool) -> None:
    rng = np.random.default_rng(frames)
    feeds = {name: rng.normal(size=(2, frames, FEATURES)).astype(np.float32) for name in "qkv"}
    feeds["bias"] = np.zeros((2, 1, 1, frames), np.float32)
    if masked:
        feeds["bias"][0, ..., (frames + 1) // 2 :] = -1e4
    model = eager_attention()
    assert fuse_attention(model) == 1
    remove_unused(model)
    assert "Softmax" not in operators(model)
    np.testing.assert_allclose(run(model, feeds), attention_in_float64(feeds), atol=2e-6)


@pytest.mark.parametrize("frames", [1, 7, 300])
def test_attention_to_everything_with_scaled_queries(frames: int) -> None:
    graph = GraphOf()
    split = graph.constant("split", np.array([0, 0, HEADS, WIDTH]))
    scaled = graph.add("Mul", ["q", graph.constant("scale", np.float32(SCALE))], "qs")
    perms = {scaled: [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    q, k, v = (
        graph.add(
            "Transpose", [graph.add("Reshape", [name, split], f"{name}4")], f"{name}h", perm=p
        )
        for name, p in perms.items()
    )
    weights = graph.add("Softmax", [graph.add("MatMul", [q, k], "scores")], "p", axis=-1)
    mixed = graph.add("MatMul", [weights, v], "mixed")
    merged = graph.add("Transpose", [mixed], "merged", perm=[0, 2, 1, 3])
    graph.add("Reshape", [merged, graph.constant("join", np.array([0, 0, -1]))], "y")
    dims: dict[str, tuple[int | str, ...]] = dict.fromkeys("qkv", (2, "t", FEATURES))
    model = graph.model(dims, "y", [2, "t", FEATURES])
    rng = np.random.default_rng(frames)
    feeds = {name: rng.normal(size=(2, frames, FEATURES)).astype(np.float32) for name in "qkv"}
    assert fuse_attention(model) == 1
    remove_unused(model)
    assert {"MultiHeadAttention"} <= set(operators(model)) and "If" not in operators(model)
    expected = attention_in_float64({**feeds, "bias": np.zeros((2, 1, 1, frames), np.float32)})
    np.testing.assert_allclose(run(model, feeds), expected, atol=2e-6)


def test_a_bias_for_each_score_stays_as_it_is() -> None:
    model = eager_attention(bias_dims=(2, HEADS, "t", "t"))
    assert fuse_attention(model) == 0
    assert "Softmax" in operators(model)


def test_the_fast_branch_is_the_one_without_a_mask() -> None:
    model = eager_attention()
    fuse_attention(model)
    choice = next(node for node in model.graph if node.op_type == "If")
    whole = choice.attributes["then_branch"].as_graph()
    assert [node.op_type for node in whole] == ["MultiHeadAttention"]
    assert len(whole[0].inputs) == 3
