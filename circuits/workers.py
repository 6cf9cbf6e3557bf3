"""Several processes at one piece of work: batches in training, prompts in attribution.

`accelerate launch` or `torchrun` start the processes and say in the environment how many there
are; accelerate's PartialState reads it and joins them (gloo on CPUs, nccl on GPUs). In training a
batch falls into the same parts however many processes share them, and each part has random numbers
of its own, so a run takes the same steps in one process or in many. All processes must see one
folder.

In attribution and circuits the prompts are shared: an `Experiment` holds the `Workers` that it was
given, each process runs its own prompts, and all of them get the sums. All processes must make the
same calls with the same models, prompts and seeds; all get the same results, those of one process
but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

PartT = TypeVar("PartT")


@dataclass(frozen=True)
class Workers:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: The number of this process.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def own(self, parts: Sequence[PartT]) -> list[tuple[int, PartT]]:
        """Returns this process's share of the parts, with their numbers."""
        return list(enumerate(parts))[self.rank :: self.count]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Adds each tensor up over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def agree(self, value: Any) -> Any:
        """Returns what the first process gave, in all of them; waits for all."""
        if self.count > 1:
            held = [value]
            dist.broadcast_object_list(held, src=0)
            return held[0]
        return value

    def greatest(self, number: int) -> int:
        """Returns the greatest of the numbers that the processes give."""
        if self.count > 1:
            numbers: list[Any] = [None] * self.count
            dist.all_gather_object(numbers, number)
            return max(numbers)
        return number


ALONE = Workers()
"""One process by itself."""


def join_workers(device: torch.device) -> Workers:
    """Returns the processes that a launcher started, joined; without one, this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Workers(state.process_index, state.num_processes)
