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
        pages = _pages_at(path)
        if not pages:
            from circuits.cli.discover import tell_of_discovery
            from circuits.results.discovery import Discovery

            tell_of_discovery(Discovery.load(path))
            return
    for page in pages:
        # A machine without a screen has no browser to open it with: the address is of use there.
        opened = browser and webbrowser.open(page.as_uri())
        said = f"opened {page}" if opened else f"open this in a browser: {page.as_uri()}"
        out_console.print(said, markup=False, highlight=False, soft_wrap=True)


def _pages_at(path: Path) -> list[Path]:
    """The page of a folder or the page itself, none for a file of results.

    Of a folder with a run for each of several seeds these are the pages of all. A run that has none
    yet, or was written before there were any, gets its page here.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: a folder without any page.
    """
    path = path.resolve()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_file():
        return [path] if path.suffix == ".html" else []
    of_seeds = {int(one.name[4:]): one for one in path.glob("seed*") if one.name[4:].isdecimal()}
    folders = [path, *(of_seeds[seed] for seed in sorted(of_seeds))]
    found = {folder: page for folder in folders if (page := _page_in(folder)) is not None}
    if path in found:
        return [found[path]]
    if found:
        return list(found.values())
    raise ValueError(
        f"{path} holds none of {', '.join(PAGES)}; give a folder that `circuits compare`, "
        "`circuits discover --out FOLDER` or `circuits train` wrote"
    )


def _page_in(folder: Path) -> Path | None:
    """The page that lies in a folder, written here for a run that has none."""
    for name in PAGES:
        if (folder / name).is_file():
            return folder / name
    from circuits.sparsify.training_page import write_training_page
    from circuits.sparsify.training_page.run_folder import RUN_FILE

    return write_training_page(folder) if (folder / RUN_FILE).is_file() else None
