"""What all commands share: the two consoles, how far they are, tables, and usage errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from circuits.numbers import sized
from circuits.progress import Steps, shown_steps

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
def progress_bar(
    total: float, work_of_step: Callable[[str], float] | None = None
) -> Iterator[Steps]:
    """Yields what to call with the name of each step; Ctrl-C ends with exit code 130.

    `total` counts steps, or, where these differ, what `work_of_step` says of each by its name.
    """
    with shown_steps(total, console=err_console, work_of_step=work_of_step) as steps:
        try:
            yield steps
        except KeyboardInterrupt:
            say("interrupted; no results were written")
            raise typer.Exit(130) from None
        steps.finish()


def with_bounds(row: Any, name: str, write: Callable[[float], str]) -> str:
    """Returns an estimate in a row of a table with its interval, from `{name}_low` to `_high`.

    `write` turns a number into text, such as `"{:.2f}".format`.
    """
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(low):
        return f"{write(value)} (no interval)"
    return f"{write(value)} [{write(low)}, {write(high)}]"


def print_table(rows: Sequence[Mapping[Any, Any]], title: str | None = None) -> None:
    """Prints rows of one kind to stdout, numbers to the right; without rows nothing."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for name in rows[0] if rows else ():
        is_text = any(isinstance(row[name], str) for row in rows)
        table.add_column(str(name), justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    if rows:
        out_console.print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        is_whole = value.is_integer() and abs(value) >= 10
        return sized(value) if is_whole or abs(value) >= 100 else f"{value:.3g}"
    return sized(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
