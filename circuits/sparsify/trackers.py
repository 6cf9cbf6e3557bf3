"""The log of a run on TensorBoard or Weights & Biases as well, through accelerate's trackers.

`log.jsonl` is written always; a tracker is a second reader of the same lines.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuits.sparsify.config import TrainConfig

TRACKERS = ("tensorboard", "wandb")


class Tracker:
    """What a run reports about itself, line by line."""

    def __init__(self, told: Any = None) -> None:
        self._told = told

    def log(self, record: dict[str, Any]) -> None:
        """Hands on one line of the log; a list becomes a series for each of its numbers."""
        if self._told is None:
            return
        values = {}
        for name, value in record.items():
            if isinstance(value, list):
                values |= {f"{name}/{number}": one for number, one in enumerate(value)}
            elif value is not None:
                values[name] = value
        self._told.log(values, step=record["step"])


def check_tracker(name: str | None) -> None:
    """Refuses a tracker that is unknown or not installed.

    Raises:
        ValueError: it is; the text says what to install.
    """
    if name is None:
        return
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker {name!r}; choose one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{name} is not installed; pip install {name}")


@contextmanager
def open_tracker(name: str | None, out_dir: Path, config: TrainConfig) -> Iterator[Tracker]:
    """Yields the tracker of a run, which does nothing without a name; closes it at the end.

    TensorBoard reads `out_dir/tensorboard`; wandb asks for a login, or WANDB_MODE=offline.
    """
    if name is None:
        yield Tracker()
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState(cpu=True)
    if name == "tensorboard":
        told: Any = TensorBoardTracker("tensorboard", str(out_dir))
    else:
        told = WandBTracker("circuits", dir=str(out_dir), name=out_dir.name)
    told.start()
    told.store_init_configuration(asdict(config))
    try:
        yield Tracker(told)
    finally:
        told.finish()
