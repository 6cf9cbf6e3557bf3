"""Data parallel training: several processes, each with a part of every batch.

`accelerate launch` or `torchrun` start the processes and say in the environment how many there
are; accelerate's PartialState reads it and joins them (gloo on CPUs, nccl on GPUs). A batch falls
into the same parts however many processes share them, and each part has random numbers of its
own, so a run takes the same steps in one process or in many. All processes must see one folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Workers:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: The number of this process.
        count: How many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device.type == "cpu")
            self.rank, self.count = state.process_index, state.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def own(self, parts: list[Any]) -> list[tuple[int, Any]]:
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

    def any(self, flag: bool) -> bool:
        """Returns whether any process says so."""
        if self.count > 1:
            flags: list[Any] = [None] * self.count
            dist.all_gather_object(flags, flag)
            return any(flags)
        return flag
