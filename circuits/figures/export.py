"""Figures as files for papers: vector graphics at the width of a column, with legible text.

Plotly draws through kaleido, which needs a Chrome or Chromium on the machine. Both are optional:
the `print` extra brings kaleido, and HTML files need neither.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go

from circuits.files import write_bytes

Column = Literal["single", "double"]

# Inches of a column and of both, as in two-column proceedings.
PRINT_WIDTHS: dict[str, float] = {"single": 3.35, "double": 6.9}
# Pixels that a figure is laid out in before it is scaled to its width: the most that leave text of
# 12 pixels, the least in any figure here, legible.
_LAYOUT_WIDTHS = {"single": 388, "double": 826}
LEGIBLE = 7.0  # points
_TALLEST = 9.0  # inches: what a page leaves for a figure and its caption
# What a figure has above its plots for its title, and print does not need.
_TITLE_ROOM = 56
FORMATS = (".pdf", ".svg", ".png")
# Kaleido prints a PDF with this margin, in inches, on a page that does not leave room for it: what
# lies at the right and at the foot is cut off, unless the figure has that much to spare.
_PDF_MARGIN = 0.1
_CSS_PIXELS_PER_INCH = 96
_PNG_PIXELS_PER_INCH = 300
_POINTS_PER_INCH = 72


def fits(figure: go.Figure, column: Column | str) -> bool:
    """Returns whether the figure can be printed in such a column, and read."""
    return not _obstacle(figure, column)


def for_print(figure: go.Figure, column: Column | str = "double") -> go.Figure:
    """Returns the figure laid out for a column: no title (a caption says it), trimmed margins.

    Raises:
        ValueError: the column is unknown, text of the figure would be smaller than 7 points, or
            panels would stand side by side in a single column.
    """
    obstacle = _obstacle(figure, column)
    if obstacle:
        raise ValueError(obstacle)
    laid_out = go.Figure(figure)
    margin = figure.layout.margin
    saved = _TITLE_ROOM if figure.layout.title.text else 0
    laid_out.update_layout(
        title=None,
        width=_LAYOUT_WIDTHS[column],
        height=(figure.layout.height or 450) - saved,
        margin={
            "t": max(10, (margin.t or 100) - saved),
            "r": 10,
            "l": 10,
            "b": 16,
        },
    )
    # The labels of axes take the room that they need, and no more.
    laid_out.update_xaxes(automargin=True)
    laid_out.update_yaxes(automargin=True)
    return laid_out


def save_figure(figure: go.Figure, path: str | Path, column: Column | str = "double") -> None:
    """Writes the figure as PDF, SVG or PNG (300 dots per inch), as wide as a column of a paper.

    Args:
        figure: Any figure of `circuits.figures`, or one of your own.
        path: Where to; its ending says the format.
        column: `single` (3.35 inches) or `double` (6.9 inches).

    Raises:
        ValueError: the format or column is unknown, or the figure would not be legible.
        FileNotFoundError: there is no such folder.
        RuntimeError: kaleido or a browser is missing; the message says how to get it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path.name} has no known format; end it with {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")
    laid_out = for_print(figure, column)
    width = PRINT_WIDTHS[column]
    if suffix == ".pdf":
        laid_out = _with_room(laid_out, 2 * _PDF_MARGIN / width)
    dots = {".svg": laid_out.layout.width, ".pdf": width * _CSS_PIXELS_PER_INCH}
    scale = dots.get(suffix, width * _PNG_PIXELS_PER_INCH) / laid_out.layout.width
    _require_kaleido()
    with warnings.catch_warnings(), _browser_errors():
        # Plotly passes options of its own to a browser that is open already.
        warnings.filterwarnings("ignore", "The kopts argument is ignored", UserWarning)
        drawn = laid_out.to_image(format=suffix[1:], scale=scale)
    if suffix == ".svg":
        drawn = _sized(drawn.decode(), laid_out.layout.width, laid_out.layout.height, width)
    write_bytes(path, drawn)


def _obstacle(figure: go.Figure, column: str) -> str:
    """Why the figure does not fit the column; empty if it does."""
    if column not in PRINT_WIDTHS:
        raise ValueError(f"unknown column {column!r}; choose one of {', '.join(PRINT_WIDTHS)}")
    panels = {tuple(axis.domain or (0, 1)) for axis in figure.select_xaxes()}
    if column == "single" and len(panels) > 1:
        return f"a single column is too narrow for {len(panels)} panels; give column='double'"
    laid_out = _LAYOUT_WIDTHS[column]
    if (figure.layout.width or 0) > laid_out:
        return f"the figure is too wide for a {column} column; give column='double'"
    saved = _TITLE_ROOM if figure.layout.title.text else 0
    inches = ((figure.layout.height or 450) - saved) * PRINT_WIDTHS[column] / laid_out
    if column == "single" and inches > _TALLEST:
        return (
            f"the figure would be {inches:.1f} inches high in a single column, more than a page; "
            "give column='double'"
        )
    smallest = min(_font_sizes(figure.to_plotly_json()), default=12.0)
    inches = (PRINT_WIDTHS[column] - 2 * _PDF_MARGIN) / _LAYOUT_WIDTHS[column]
    points = smallest * inches * _POINTS_PER_INCH
    if points < LEGIBLE:
        return (
            f"the figure's smallest text would be {points:.1f} points high in a {column} column; "
            "give the figure a larger font, or column='double'"
        )
    return ""


@contextmanager
def one_browser() -> Iterator[None]:
    """Saves all figures inside with one browser; alone, each starts one, which takes seconds.

    Raises:
        RuntimeError: as for `save_figure`.
    """
    _require_kaleido()
    import kaleido

    with _browser_errors():
        kaleido.start_sync_server(silence_warnings=True)
    try:
        yield
    finally:
        kaleido.stop_sync_server(silence_warnings=True)


@contextmanager
def _browser_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"kaleido could not draw ({str(error).strip().splitlines()[0]}); it needs a Chrome or "
            "Chromium: install one, or run plotly_get_chrome. figure.write_html needs none"
        ) from error


def _require_kaleido() -> None:
    if importlib.util.find_spec("kaleido") is None:
        raise RuntimeError(
            "writing figures for print needs kaleido: pip install 'sparse-circuits[print]'; "
            "figure.write_html needs nothing"
        )


def _with_room(figure: go.Figure, share: float) -> go.Figure:
    """The figure with a share of its whole width added, empty, at the right and at the foot."""
    layout = figure.layout
    room = layout.width * share / (1 - share)
    margin = {"r": layout.margin.r + room, "b": layout.margin.b + room}
    return go.Figure(figure).update_layout(
        width=layout.width + room, height=layout.height + room, margin=margin
    )


def _sized(svg: str, width: float, height: float, inches: float) -> bytes:
    """The drawing with its size on paper in its head; its view box stays in pixels."""
    head, _, rest = svg.partition(">")
    for name, pixels in (("width", width), ("height", height)):
        old = f'{name}="{pixels:g}"'
        if old not in head:
            raise RuntimeError(f"kaleido's SVG does not say {old}; report this with its version")
        head = head.replace(old, f'{name}="{pixels * inches / width:.4f}in"', 1)
    return f"{head}>{rest}".encode()


def _font_sizes(plain: Any) -> Iterator[float]:
    """Every font size in a figure's description, its template included."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            if key.endswith("font") and isinstance(value, dict) and value.get("size"):
                yield float(value["size"])
            yield from _font_sizes(value)
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            yield from _font_sizes(value)
