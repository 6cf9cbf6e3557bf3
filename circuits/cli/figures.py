"""`circuits figures`: the figures of a comparison as files for a paper."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.cli.console import out_console, progress_bar, usage_errors

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figures_command(
    results: Annotated[
        Path, typer.Argument(help="Folder that `circuits compare` or `circuits discover` wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    format: Annotated[str, typer.Option(help="pdf, svg or png.")] = "pdf",
    column: Annotated[
        str, typer.Option(help="Width: single (3.35 in) where a figure fits, or double (6.9 in).")
    ] = "single",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Figures to write, such as sizes or ioi.circuits; `*.arcs` for those of all "
            "behaviours. Repeatable; all if left out."
        ),
    ] = None,
    font: Annotated[
        str | None, typer.Option(help="Font of all text, such as 'Times New Roman'.")
    ] = None,
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
        figures = _chosen(dict(figures_of(comparison, narrow=column == "single")), only or ["*"])
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with one_browser(), progress_bar(len(figures)) as step:
        for name, figure in figures.items():
            step(name)
            if font is not None:
                figure.update_layout(font_family=font)
            width = column if fits(figure, column) else "double"
            path = out / f"{file_name_of(name)}.{format}"
            save_figure(figure, path, width)
            written.append(f"{path}  ({PRINT_WIDTHS[width]} in)")
    for line in written:
        out_console.print(line, highlight=False, soft_wrap=True)


def _chosen(figures: dict[str, go.Figure], patterns: list[str]) -> dict[str, go.Figure]:
    """The figures whose names match a pattern.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in figures):
            raise ValueError(f"--only {pattern} names no figure; there is {', '.join(figures)}")
    return {
        name: figure
        for name, figure in figures.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
