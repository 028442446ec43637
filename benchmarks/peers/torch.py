"""The peers that are torch itself: the checkpoint that a bundle was made from, as torch runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.errors import CheckpointError, EngineError
from speechquant.engines import open_session
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.exporter.checkpoints import load_checkpoint
from speechquant.exporter.random_models import PREFIX as RANDOM_PREFIX
from speechquant.zoo.models import trained_model

if TYPE_CHECKING:
    from torch import Tensor

FLOAT32, BFLOAT16 = "float32", "bfloat16"
_ZOO_PREFIX = "zoo:"
# The graph itself is within a tenth of this of torch; another fine-tuning is far beyond it.
_SAME_WEIGHTS = 1e-3
_CHECKED_SECONDS = 1


def local_checkpoint(bundle: Bundle) -> str:
    """Return the folder or `random:NAME` that the bundle was made from, without any network.

    Raises CheckpointError where it is not on this machine.
    """
    source = str(bundle.made_from.get("checkpoint", ""))
    if source.startswith(RANDOM_PREFIX):
        return source
    if source.startswith(_ZOO_PREFIX):
        return str(trained_model(source.removeprefix(_ZOO_PREFIX)))
    if source and Path(source).is_dir():
        return str(Path(source).resolve())
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(source, local_files_only=True))
    except Exception as error:  # the hub client's errors and those of its parts share no base
        raise CheckpointError(
            f"the checkpoint {source!r} is neither a folder here nor in the hub's local cache; "
            "run where it lies, or download it first"
        ) from error


def load_torch_model(checkpoint: str) -> Any:
    """Return the model as torch runs it best: fused attention where it has it, norms folded."""
    import torch
    from torch.nn.utils import parametrize

    model = load_checkpoint(checkpoint).model
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    for module in model.modules():
        # Weight norm is for training; left in, the weight is computed anew for each clip.
        if isinstance(module, torch.nn.Conv1d) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def check_torch(bundle: Bundle, checkpoint: str, threads: int | None) -> int:
    """Return how many weights the checkpoint has.

    Raises CheckpointError where it does not give the logits that the float bundle does.
    """
    samples = _CHECKED_SECONDS * bundle.spec.sample_rate_hz
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    feeds = feeds_of(bundle.spec_as(CtcSpec), [wave])
    with open_session(bundle, provider="cpu", threads=threads) as session:
        expected = session.run(feeds)["logits"]
    with TorchSession(checkpoint, FLOAT32, threads) as torch_session:
        logits = torch_session.run(feeds)["logits"]
        weights = torch_session.weights
    if logits.shape == expected.shape:
        largest = max(1.0, float(np.abs(expected).max()))
        if np.abs(logits - expected).max() <= _SAME_WEIGHTS * largest:
            return weights
    source = bundle.made_from["checkpoint"]
    raise CheckpointError(
        f"the checkpoint {source!r} is no longer what the bundle was made from; export it again"
    )


class TorchSession:
    """Runs a checkpoint in torch as a session runs a graph."""

    provider = "torch"

    def __init__(self, checkpoint: str, dtype: str, threads: int | None) -> None:
        import torch

        # Not by autocast, which casts every weight anew for each batch: a hubert-base gave the same
        # logits that way, and took longer for a short clip.
        self._dtype = torch.bfloat16 if dtype == BFLOAT16 else torch.float32
        self._model = load_torch_model(checkpoint).to(self._dtype)
        self._threads = threads

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(weight.numel() for weight in self._model.parameters())

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._model = None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the logits in float32; raises EngineError once the session is closed."""
        import torch

        if self._model is None:
            raise EngineError("this session is closed; open another")
        # The number is the whole process's, and another session may have set its own.
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            logits = self._logits(
                torch.from_numpy(feeds["input_values"]).to(self._dtype),
                torch.from_numpy(feeds["input_lengths"]),
            )
        return {"logits": logits.float().numpy()}

    def _logits(self, values: Tensor, lengths: Tensor) -> Tensor:
        import torch

        samples = values.shape[1]
        if bool((lengths == samples).all()):
            # As transformers runs a batch without padding; models with a group norm take no mask.
            logits: Tensor = self._model(values).logits
            return logits
        if self._model.config.model_type == "data2vec-audio":
            # Its stacked positional convolutions let padding into a clip, masked or not.
            alone = [
                self._model(row[None, :length]).logits[0]
                for row, length in zip(values, lengths.tolist(), strict=True)
            ]
            return torch.nn.utils.rnn.pad_sequence(alone, batch_first=True)
        mask = (torch.arange(samples)[None, :] < lengths[:, None]).long()
        masked: Tensor = self._model(values, attention_mask=mask).logits
        return masked
