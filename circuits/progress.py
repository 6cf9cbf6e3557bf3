"""How far long work has come: a bar in a terminal, plain lines wherever else the output goes.

A log file or a CI job has no use for a bar, which redraws itself with control characters: it gets a
line for each thing that is begun (a model, a task, a granularity), or for each measurement of a
run, with the time that has passed and about how much is left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PATIENCE = 60.0
"""Seconds after which a line is printed though nothing new was begun."""


def is_live(console: Console) -> bool:
    """Returns whether a console is looked at while it is written to: a terminal or a notebook.

    A variable that asks for colours in a file (FORCE_COLOR) makes it none.
    """
    return console.is_jupyter or (console.is_interactive and console.file.isatty())


class Steps:
    """What long work calls to say how far it has come.

    Attributes:
        total: How much there is to do, in steps, tokens or whatever is counted.
        done: How much is done.
    """

    def __init__(self, total: float, done: float = 0) -> None:
        self.total, self.done = total, done
        self._done_before = done
        self._started = time.monotonic()

    def __call__(self, what: str) -> None:
        """Counts a step; `what` are a few words for it, such as model, task and granularity."""
        self.reach(self.done + 1, what)

    def reach(
        self, done: float, what: str, numbers: str = "", *, is_told: bool | None = None
    ) -> None:
        """Says that so much is done.

        Args:
            done: How much, with what an earlier call had done before this one went on.
            what: What is done at present, in a few words.
            numbers: What was measured, to be shown with it.
            is_told: Whether it is worth a line where there is no terminal; by default if `what` is
                new.
        """
        self.done = done
        self._show(what, numbers, is_told)

    def begin_at(self, done: float) -> None:
        """Says that so much was done before; it says nothing of how fast the work goes."""
        self.done = self._done_before = done
        self._started = time.monotonic()

    @property
    def remaining(self) -> float:
        """How much is left."""
        return max(self.total - self.done, 0)

    @property
    def seconds(self) -> float:
        """How long the work has gone on."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """How long the rest will take at the mean speed so far; None before anything was done."""
        did = self.done - self._done_before
        return self.seconds * self.remaining / did if did > 0 else None

    def leave_out(self, n_steps: float) -> None:
        """Says that so many steps will not be taken; the time left is estimated anew."""
        self.total -= n_steps

    def finish(self) -> None:
        """Says that all is done: how many steps there are is often known roughly."""
        self.done = self.total

    def _show(self, what: str, numbers: str, is_told: bool | None) -> None:
        """Shows nothing."""


class _Lines(Steps):
    """A plain line for whatever is told.

    Several things may be under way at a time: what stands before a colon says which of them, and
    what is new is new of that one.
    """

    def __init__(self, console: Console, total: float, done: float) -> None:
        super().__init__(total, done)
        self._console, self._told_at = console, self._started
        self._last: dict[str, str] = {}

    def _show(self, what: str, numbers: str, is_told: bool | None) -> None:
        which = what.partition(":")[0]
        is_new = what != self._last.get(which) if is_told is None else is_told
        if not is_new and time.monotonic() - self._told_at < PATIENCE:
            return
        self._last[which], self._told_at = what, time.monotonic()
        left = "" if self.seconds_left is None else f", about {clock(self.seconds_left)} left"
        line = f"{what}: {numbers}" if numbers else what
        share = self.done / self.total if self.total > 0 else 1.0
        line = f"{line} ({min(share, 1):.0%} done, {clock(self.seconds)} so far{left})"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _BarWithNumbers(Progress):
    """A bar, and under it the latest numbers, which need the width for themselves."""

    numbers = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.numbers:
            yield Text(self.numbers)


class _Bar(Steps):
    """A bar of rich."""

    def __init__(self, bar: _BarWithNumbers, total: float, done: float) -> None:
        super().__init__(total, done)
        self._bar = bar
        self._task = bar.add_task("starting", total=total, completed=done)  # pyright: ignore

    def _show(self, what: str, numbers: str, _is_told: bool | None) -> None:
        self._bar.numbers = numbers
        self._update(description=what)

    def begin_at(self, done: float) -> None:
        super().begin_at(done)
        # Else the speed would be that of a leap.
        self._bar.reset(self._task, total=self.total, completed=done)  # pyright: ignore

    def leave_out(self, n_steps: float) -> None:
        super().leave_out(n_steps)
        self._update()

    def finish(self) -> None:
        super().finish()
        self._update(description="done")

    def _update(self, **more: Any) -> None:
        self._bar.update(self._task, completed=self.done, total=self.total, **more)


@contextmanager
def shown_steps(
    total: float, *, console: Console | None = None, done: float = 0, shown: bool = True
) -> Iterator[Steps]:
    """Yields what to call as the work goes on.

    Args:
        total: How much there is to do.
        console: Where it is shown; stderr if left out.
        done: How much of it was done before.
        shown: Whether anything is shown at all.
    """
    console = console or Console(stderr=True)
    if not shown:
        yield Steps(total, done)
        return
    if not is_live(console):
        yield _Lines(console, total, done)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with _BarWithNumbers(*columns, console=console) as bar:
        yield _Bar(bar, total, done)


def clock(seconds: float) -> str:
    """Returns a duration as hours, minutes and seconds: 1:02:03."""
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
