"""`circuits methods`: what a paper says about a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.console import out_console, usage_errors


def methods_command(
    results: Annotated[Path, typer.Argument(help="Folder that `circuits compare` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the text as Markdown and LaTeX, its references as BibTeX, and tables "
            "of sizes and models for LaTeX's booktabs."
        ),
    ] = None,
) -> None:
    """Write the methods paragraph of a paper, with references and tables, from results."""
    with usage_errors():
        from circuits.files import check_folder, write_text
        from circuits.report import as_latex, bibtex, cited, latex_tables, methods_text
        from circuits.results.comparison_file import load_comparison

        if out is not None:
            check_folder(out)
        comparison = load_comparison(results)
        text = methods_text(comparison)
    references = bibtex(cited(comparison))
    if out is None:
        for part in (text, references):
            out_console.print(part, markup=False, highlight=False, soft_wrap=True)
        return
    out.mkdir(parents=True, exist_ok=True)
    files = {"methods.md": text, "methods.tex": as_latex(text), "references.bib": references}
    files |= {f"{name}.tex": table for name, table in latex_tables(comparison).items()}
    for name, content in files.items():
        write_text(out / name, content)
        out_console.print(str(out / name), highlight=False, soft_wrap=True)
