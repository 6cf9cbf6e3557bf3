"""What all commands share: the two consoles, the progress bar, tables, and usage errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

out_console = Console()
err_console = Console(stderr=True)


def say(message: str) -> None:
    """Prints one line to stderr, as it is."""
    err_console.print(f"circuits: {message}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def said_warnings() -> Iterator[None]:
    """Says what the package warns of inside the context, a line each."""
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say_it(
            message: Warning | str, category: type[Warning], filename: str, *place: Any
        ) -> None:
            if category is UserWarning and Path(filename).is_relative_to(package):
                say(f"warning: {message}")
            else:
                show(message, category, filename, *place)

        warnings.showwarning = say_it
        yield


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns what is wrong with arguments, before any work is done, into a usage error."""
    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError, PermissionError) as error:
        raise typer.BadParameter(str(error)) from error


class Steps:
    """What a command calls with the name of each step of its progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._bar = progress.add_task("starting", total=total)

    def __call__(self, what: str) -> None:
        """Counts a step."""
        self._progress.update(self._bar, advance=1, description=what)

    @property
    def remaining(self) -> float:
        """How many steps are left."""
        return self._progress.tasks[0].remaining or 0.0

    def leave_out(self, n_steps: int) -> None:
        """Says that so many steps will not be taken; the time left is estimated anew."""
        total = self._progress.tasks[0].total or 0.0
        self._progress.update(self._bar, total=total - n_steps)

    def finish(self) -> None:
        """Fills the bar: how many steps there are is known roughly."""
        total = self._progress.tasks[0].total
        self._progress.update(self._bar, completed=total, description="done")


@contextmanager
def progress_bar(total: int) -> Iterator[Steps]:
    """Yields what to call with the name of each step; Ctrl-C ends with exit code 130."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console) as progress:
        steps = Steps(progress, total)
        try:
            yield steps
        except KeyboardInterrupt:
            say("interrupted; no results were written")
            raise typer.Exit(130) from None
        steps.finish()


def with_bounds(row: Any, name: str, digits: str) -> str:
    """Returns an estimate in a row of a table with its interval, from `{name}_low` to `_high`."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(low):
        return f"{value:{digits}} (no interval)"
    return f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"


def print_frame(frame: pd.DataFrame, title: str) -> None:
    """Prints a table to stdout."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    for name in frame.columns:
        justify = "right" if frame[name].dtype.kind in "fi" else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    out_console.print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) >= 10
        return f"{value:.0f}" if whole else f"{value:.3g}"
    return str(value)
