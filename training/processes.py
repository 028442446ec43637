"""The processes of a training: one alone, or those that torchrun starts on one or more machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """How many there are, which of them this is, and the device that it computes on."""

    count: int = 1
    rank: int = 0
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this one writes and reports."""
        return self.rank == 0

    @property
    def kind(self) -> str:
        """What the device is, without its number."""
        return self.device.partition(":")[0]

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield this process's part of what all of them do together."""
        return islice(items, self.rank, None, self.count)

    def place(self, turn: int) -> int:
        """Return which item of all is this process's in a turn, as `share` counts."""
        return turn * self.count + self.rank

    def together(self, own: list[Item], total: int) -> list[Item]:
        """Return the parts of all processes, in the order that `share` took them from."""
        if self.count == 1:
            return own
        from torch import distributed

        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, own)
        return [parts[index % self.count][index // self.count] for index in range(total)]

    def divided(
        self, items: Sequence[Item], work: Callable[[list[Item]], list[Result]]
    ) -> list[Result]:
        """Return what `work` makes of each item; each process works on its share."""
        return self.together(work(list(self.share(items))), len(items))

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes."""
        if self.count == 1:
            return values
        from torch import distributed

        total = values.clone()
        distributed.all_reduce(total)
        return total / self.count

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Make each gradient the mean over all processes.

        A process without a gradient counts as zero; where none has one, none gets one.
        """
        if self.count == 1:
            return
        import torch
        from torch import distributed

        has_gradient = torch.tensor(
            [float(parameter.grad is not None) for parameter in parameters], device=self.device
        )
        distributed.all_reduce(has_gradient)
        gradients = []
        for parameter, processes in zip(parameters, has_gradient.tolist(), strict=True):
            if processes and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        means = flat.split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def take_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give the tensors the values that they have in the first process."""
        if self.count == 1:
            return
        from torch import distributed

        for tensor in tensors:
            values = tensor.detach().contiguous()
            distributed.broadcast(values, 0)
            tensor.detach().copy_(values)

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


ALONE = Processes()


@contextmanager
def joined_processes(*, on_gpu: bool = True) -> Iterator[Processes]:
    """Yield the processes that this one belongs to: those of torchrun, or itself alone.

    Each computes on its GPU where it has one, and may: over nccl then, else over gloo.
    """
    import torch
    from torch import distributed

    has_gpu = on_gpu and torch.cuda.is_available()
    if "RANK" not in os.environ:
        yield Processes(device="cuda" if has_gpu else "cpu")
        return
    device = "cpu"
    if has_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Processes(distributed.get_world_size(), distributed.get_rank(), device)
    finally:
        distributed.destroy_process_group()
