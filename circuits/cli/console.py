"""What all commands share: the two consoles, how far they are, tables, and usage errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from circuits.progress import Steps, shown_steps

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


@contextmanager
def progress_bar(total: float) -> Iterator[Steps]:
    """Yields what to call with the name of each step; Ctrl-C ends with exit code 130."""
    with shown_steps(total, console=err_console) as steps:
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


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Prints rows of one kind to stdout, as a table without rules between columns."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    out_console.print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) >= 10
        return f"{value:.0f}" if whole else f"{value:.3g}"
    return str(value)
