"""What a launcher (accelerate launch, torchrun) says about this process in the environment.

Read here without torch, which `--help` must not wait for.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from typing import Any

from circuits.cli.console import err_console, out_console


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher started; one alone without a launcher.

    Attributes:
        rank: The number of this process.
        count: How many there are.
        local_rank: Its number on its machine, which is also that of its GPU.
    """

    rank: int
    count: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def own_device(self, device: str) -> str:
        """Returns the device for this process: `cuda` is a GPU of its own."""
        return f"cuda:{self.local_rank}" if self.count > 1 and device == "cuda" else device

    def described(self) -> dict[str, Any]:
        """Returns what results say of their making: how many processes, and the command."""
        return {"processes": self.count, "command": "circuits " + shlex.join(sys.argv[1:])}


def read_launch() -> Launch:
    """Returns what the launcher said; silences the consoles of all processes but the first."""
    rank = int(os.environ.get("RANK", "0"))
    found = Launch(
        rank, int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", str(rank)))
    )
    if not found.is_first:
        out_console.quiet = err_console.quiet = True
    return found
