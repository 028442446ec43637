from __future__ import annotations

import pytest

from speechquant.core.errors import CheckpointError
from speechquant.exporter.random_models import random_model


@pytest.mark.parametrize(
    ("name", "parameters"),
    # What transformers counts for facebook/wav2vec2-base-960h and facebook/hubert-base-ls960 with
    # a head of 32 labels, and for facebook/hubert-large-ls960-ft.
    [
        ("wav2vec2-base", 94_396_320),
        ("hubert-base", 94_396_320),
        ("wav2vec2-large", 315_471_520),
        ("hubert-large", 315_471_520),
    ],
)
def test_models_have_their_true_size(name: str, parameters: int) -> None:
    import torch

    with torch.device("meta"):
        model = random_model(name)
    assert model.num_parameters() == parameters


def test_weights_are_the_same_every_time_and_leave_the_seed_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_model("hubert-base").lm_head.weight
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, random_model("hubert-base").lm_head.weight)


def test_unknown_name() -> None:
    with pytest.raises(CheckpointError, match="random:hubert-large"):
        random_model("whale")
