"""The progress bar of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from circuits.sparsify.config import TrainConfig


class Bar:
    """The progress bar: the latest CE and density beside lambda and the time left.

    Before them stands the KL where it is bounded. For a control, which has neither density nor
    lambda, the CE of the batch.
    """

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=steps)
        self._measured = ""

    def show(self, step: int, record: dict[str, Any]) -> None:
        """Moves the bar to `step` and shows its line of the log."""
        text = self._of_twin(record) if "lambda" in record else self._of_control(record)
        self._progress.update(self._task, completed=step, description=text)

    def _of_control(self, record: dict[str, Any]) -> str:
        if "ce" in record:
            self._measured = f"CE {record['ce']:.4f}, "
        return f"{self._measured}batch {record['sampled_ce']:.4f}"

    def _of_twin(self, record: dict[str, Any]) -> str:
        if "ce" in record:
            ce = f"CE {record['ce']:.4f}"
            if "kl" in record:
                held = f"KL {record['kl']:.4f} (epsilon {record['epsilon']:g}), {ce}"
            else:
                held = f"{ce} (tau {record['tau']:.4f})"
            self._measured = f"{held}, open {record['density']:.2%}, "
        text = self._measured or f"open {record['expected_density']:.1%} expected, "
        return f"{text}lambda {record['lambda']:.2f}"


@contextlib.contextmanager
def progress_bar(config: TrainConfig, *, shown: bool) -> Iterator[Bar]:
    """Yields the bar of a run, which stays empty unless `shown`."""
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown) as progress:
        yield Bar(progress, config.steps)
