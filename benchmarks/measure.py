"""What the benchmarks share: the clock, the memory of this process, and the table that is kept."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from circuits.files import write_text
from circuits.models.load import versions

Job = Callable[[], object]


def seconds_of(job: Job) -> float:
    """Returns how long one call takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def resident_bytes(what: str) -> int:
    """Returns what Linux's account of this process says, `VmRSS` (held now) or `VmHWM` (at most).

    getrusage's peak will not do: it is at least what the parent process held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def grown_memory(job: Job) -> int:
    """Returns by how many bytes this process grows while it does a job, at most; Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again at what is held now.
    before = resident_bytes("VmRSS")
    job()
    return resident_bytes("VmHWM") - before


def report(rows: list[dict[str, object]], out: Path | None) -> None:
    """Prints the rows; writes them to `out` as CSV, the machine and versions in each row."""
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    about = {"device": device, "threads": torch.get_num_threads()} | versions()
    for name, value in about.items():
        table[name] = value
    if out:
        write_text(out, table.to_csv(index=False))
