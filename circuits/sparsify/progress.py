"""How a run is shown while it goes on: the latest measurements, its speed and the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from circuits.numbers import percent
from circuits.progress import PATIENCE, Steps, shown_steps
from circuits.sparsify.config import TrainConfig

BETWEEN_CHECKS = 10.0
"""Seconds that lie at least between a line and that of a check of lambda."""


class Shown:
    """What is shown of a run: CE or KL against its bound, density, lambda, tokens a second.

    For a control, which has neither density nor lambda, the CE of the batch stands next to
    the last that was measured.
    """

    def __init__(self, steps: Steps, config: TrainConfig) -> None:
        self._steps, self._config = steps, config
        self._measured = self._open = ""
        self._speeds: list[float] = []

    def show(self, step: int, record: dict[str, Any]) -> None:
        """Shows a run after `step` steps, by its line of the log.

        Where there is no terminal that is a line for an evaluation, and for a check of lambda if
        the last line lies some seconds back.
        """
        # The middle one of ten: a step that waited for the disk or compiled says little.
        self._speeds = [*self._speeds[-9:], record["tokens_per_second"]]
        speed = sorted(self._speeds)[len(self._speeds) // 2]
        text = self._of_twin(record) if "lambda" in record else self._of_control(record)
        self._steps.reach(
            step,
            f"step {step:,} of {self._config.steps:,}",
            f"{text}, {speed:,.0f} tokens/s",
            after=0.0 if "ce" in record else BETWEEN_CHECKS if "control_ce" in record else PATIENCE,
        )

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
            self._measured, self._open = f"{held}, ", f"open {percent(record['density'])}, "
        elif "control_kl" in record:
            bound = f"epsilon {self._config.epsilon:g}"
            self._measured = f"control KL {record['control_kl']:.4f} ({bound}), "
        elif "control_ce" in record:
            bound = f"bound {record['control_tau']:.4f}"
            self._measured = f"control CE {record['control_ce']:.4f} ({bound}), "
        text = self._open or f"open {percent(record['expected_density'])} expected, "
        return f"{self._measured}{text}lambda {record['lambda']:.2f}"


@contextlib.contextmanager
def shown_run(config: TrainConfig, *, done: int, shown: bool) -> Iterator[Shown]:
    """Yields what shows a run of which `done` steps are done; it stays silent unless `shown`."""
    with shown_steps(config.steps, done=done, shown=shown) as steps:
        yield Shown(steps, config)
