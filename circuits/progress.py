"""How far long work has come: a bar in a terminal, plain lines wherever else the output goes.

A log file or a CI job has no use for a bar, which redraws itself with control characters: it gets a
line for each thing that is begun (a model, a task, a granularity), or for each measurement of a
run, with the time that has passed and about how much is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

PATIENCE = 60.0
"""Seconds after which a line is printed though nothing new was begun."""
_KNOWN_FROM = 0.05
"""From which share of estimated work on its speed is known."""


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

    def __init__(
        self, total: float, done: float = 0, work_of_step: Callable[[str], float] | None = None
    ) -> None:
        self.total, self.done = total, done
        self._work_of_step = work_of_step
        self._done_before = done
        self._started = time.monotonic()

    def __call__(self, what: str) -> None:
        """Counts a step; `what` are a few words for it, such as model, task and granularity."""
        self.reach(
            self.done + (1 if self._work_of_step is None else self._work_of_step(what)), what
        )

    def reach(
        self, done: float, what: str, numbers: str = "", *, after: float | None = None
    ) -> None:
        """Says that so much is done.

        Args:
            done: How much, with what an earlier call had done before this one went on.
            what: What is done at present, in a few words.
            numbers: What was measured, to be shown with it.
            after: Where there is no terminal, how many seconds the last line must lie back for
                this to be worth one; by default none if `what` is new, else `PATIENCE`.
        """
        self.done = done
        self._show(what, numbers, after)

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
        """How long the rest will take at the mean speed so far.

        None while that is not known: before anything was done, and of work that is estimated, in
        its first twentieth and where it turns out to be more than was foreseen.
        """
        did = self.done - self._done_before
        is_known = did > 0
        if self._work_of_step is not None:
            is_known = did >= _KNOWN_FROM * (did + self.remaining) and self.remaining > 0
        return self.seconds * self.remaining / did if is_known else None

    @property
    def share(self) -> float:
        """How much of all is done, 0 to 1; of work that is estimated, 0.99 at most."""
        share = self.done / self.total if self.total > 0 else 1.0
        return min(share, 1.0 if self._work_of_step is None else 0.99)

    def leave_out(self, n_steps: float) -> None:
        """Says that so many steps will not be taken; the time left is estimated anew."""
        self.total -= n_steps

    def finish(self) -> None:
        """Says that all is done: how many steps there are is often known roughly."""
        self.done = self.total

    def _show(self, what: str, numbers: str, after: float | None) -> None:
        """Shows nothing."""


class _Lines(Steps):
    """A plain line for whatever is told.

    Several things may be under way at a time: what stands before a colon says which of them, and
    what is new is new of that one.
    """

    def __init__(self, console: Console, *work: Any) -> None:
        super().__init__(*work)
        self._console, self._told_at = console, self._started
        self._last: dict[str, str] = {}

    def _show(self, what: str, numbers: str, after: float | None) -> None:
        which = what.partition(":")[0]
        if after is None:
            after = 0.0 if what != self._last.get(which) else PATIENCE
        if time.monotonic() - self._told_at < after:
            return
        self._last[which], self._told_at = what, time.monotonic()
        left = "" if self.seconds_left is None else f", about {clock(self.seconds_left)} left"
        line = f"{what}: {numbers}" if numbers else what
        line = f"{line} ({self.share:.0%} done, {clock(self.seconds)} so far{left})"
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

    def __init__(self, bar: _BarWithNumbers, *work: Any) -> None:
        super().__init__(*work)
        self._bar = bar
        self._task: Any = bar.add_task("starting", total=self.total, left="")
        bar.update(self._task, completed=self.done)

    def _show(self, what: str, numbers: str, _after: float | None) -> None:
        self._bar.numbers = numbers
        self._update(description=what)

    def begin_at(self, done: float) -> None:
        super().begin_at(done)
        # Else the speed would be that of a leap.
        self._bar.reset(self._task, total=self.total, left="")
        self._bar.update(self._task, completed=done)

    def leave_out(self, n_steps: float) -> None:
        super().leave_out(n_steps)
        self._update()

    def finish(self) -> None:
        super().finish()
        self._bar.update(self._task, completed=self.total, total=self.total, left="",
                         description="done")  # fmt: skip

    def _update(self, **more: Any) -> None:
        left = "" if self.seconds_left is None else f"{clock(self.seconds_left)} left"
        self._bar.update(
            self._task, completed=self.share * self.total, total=self.total, left=left, **more
        )


@contextmanager
def shown_steps(
    total: float,
    *,
    console: Console | None = None,
    done: float = 0,
    shown: bool = True,
    work_of_step: Callable[[str], float] | None = None,
) -> Iterator[Steps]:
    """Yields what to call as the work goes on.

    Args:
        total: How much there is to do.
        console: Where it is shown; stderr if left out.
        done: How much of it was done before.
        shown: Whether anything is shown at all.
        work_of_step: How much of `total` a step is about, by its name; 1 if left out.
    """
    console = console or Console(stderr=True)
    if not shown:
        yield Steps(total, done, work_of_step)
        return
    if not is_live(console):
        yield _Lines(console, total, done, work_of_step)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),  # One of rich would know the last steps only.
    )
    with _BarWithNumbers(*columns, console=console) as bar:
        yield _Bar(bar, total, done, work_of_step)


def clock(seconds: float) -> str:
    """Returns a duration as hours, minutes and seconds: 1:02:03."""
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
