"""The drawings of the page of figures; with one of them the README opens.

    circuits compare --out results
    python analyses/figures_page.py results docs/images/figures

Every kind of figure that `circuits figures` knows is drawn once, of one behaviour. Needs the extra
`print` and a Chrome or Chromium.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from circuits.figures import save_figure
from circuits.figures.export import one_browser
from circuits.report import figures_of
from circuits.results.comparison_file import load_comparison

TASK = "greater_than"


def drawn_name(figure: str) -> str:
    """Returns what a figure's drawing is called: the name of its kind."""
    return figure.removeprefix(f"{TASK}.")


def main() -> None:
    """Draws the figures of a comparison as SVG, as wide as both columns of a paper."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder that `circuits compare` wrote")
    parser.add_argument("out", type=Path, help="folder for the drawings")
    arguments = parser.parse_args()
    comparison = load_comparison(arguments.results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with one_browser():
        for name, figure in figures_of(comparison):
            if "." in name and not name.startswith(f"{TASK}."):
                continue
            path = arguments.out / f"{drawn_name(name)}.svg"
            save_figure(figure, path)
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
