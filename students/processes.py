"""The processes of a training: one alone, or those that torchrun starts on one or more machines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


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

    def share(self, items: list[Item]) -> list[Item]:
        """Return this process's part of what all of them do together."""
        return items[self.rank :: self.count]

    def together(self, own: list[Item], total: int) -> list[Item]:
        """Return the parts of all processes, in the order that `share` took them from."""
        if self.count == 1:
            return own
        from torch import distributed

        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, own)
        return [parts[index % self.count][index // self.count] for index in range(total)]

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Yield the processes that this one belongs to: those of torchrun, or itself alone."""
    import torch
    from torch import distributed

    has_gpu = torch.cuda.is_available()
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
