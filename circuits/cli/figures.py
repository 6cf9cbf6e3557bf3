"""`circuits figures`: the figures of a comparison as files for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.console import out_console, progress_bar, usage_errors


def figures_command(
    results: Annotated[
        Path, typer.Argument(help="Folder that `circuits compare` or `circuits discover` wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    format: Annotated[str, typer.Option(help="pdf, svg or png.")] = "pdf",
    column: Annotated[
        str, typer.Option(help="Width: single (3.35 in) where a figure fits, or double (6.9 in).")
    ] = "single",
) -> None:
    """Write the figures of a comparison for print: vector graphics as wide as a column."""
    with usage_errors():
        from circuits.figures.export import FORMATS, PRINT_WIDTHS, fits, one_browser, save_figure
        from circuits.files import check_folder, file_name_of
        from circuits.report import figures_of
        from circuits.results.comparison_file import load_comparison

        if f".{format}" not in FORMATS:
            known = ", ".join(ending[1:] for ending in FORMATS)
            raise ValueError(f"unknown format {format!r}; choose one of {known}")
        if column not in PRINT_WIDTHS:
            known = ", ".join(PRINT_WIDTHS)
            raise ValueError(f"unknown column {column!r}; choose one of {known}")
        check_folder(out)
        comparison = load_comparison(results)
    out.mkdir(parents=True, exist_ok=True)
    figures = dict(figures_of(comparison))
    written = []
    with one_browser(), progress_bar(len(figures)) as step:
        for name, figure in figures.items():
            step(name)
            width = column if fits(figure, column) else "double"
            path = out / f"{file_name_of(name)}.{format}"
            save_figure(figure, path, width)
            written.append(f"{path}  ({PRINT_WIDTHS[width]} in)")
    for line in written:
        out_console.print(line, highlight=False, soft_wrap=True)
