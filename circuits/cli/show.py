"""`circuits show`: opens what a command wrote."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.console import out_console, usage_errors

PAGES = ("report.html", "training.html", "robustness.html")
"""The pages that commands write into their folders."""


def show_command(
    path: Annotated[
        Path, typer.Argument(help="A folder that a command wrote, or a discovery as JSON.")
    ],
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only say where it is.")
    ] = True,
) -> None:
    """Open the page in a folder of results or of a run, or print what a saved discovery found."""
    with usage_errors():
        page = _page_at(path)
        if page is None:
            from circuits.cli.discover import tell_of_discovery
            from circuits.results.discovery import Discovery

            tell_of_discovery(Discovery.load(path))
            return
    # A machine without a screen has no browser to open it with: the address is of use there too.
    if browser and webbrowser.open(page.as_uri()):
        out_console.print(f"opened {page}", markup=False, highlight=False, soft_wrap=True)
    else:
        out_console.print(
            f"open this in a browser: {page.as_uri()}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _page_at(path: Path) -> Path | None:
    """The page of a folder or the page itself, None for a file of results.

    A run that has none yet, or was written before there were any, gets its page here.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: a folder without any page.
    """
    path = path.resolve()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_file():
        return path if path.suffix == ".html" else None
    for name in PAGES:
        if (path / name).is_file():
            return path / name
    from circuits.sparsify.training_page import write_training_page
    from circuits.sparsify.training_page.run_folder import RUN_FILE

    if (path / RUN_FILE).is_file():
        return write_training_page(path)
    raise ValueError(
        f"{path} holds none of {', '.join(PAGES)}; give a folder that `circuits compare`, "
        "`circuits discover --out FOLDER` or `circuits train` wrote"
    )
