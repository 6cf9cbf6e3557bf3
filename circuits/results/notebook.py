"""Small tables for notebooks: what `_repr_html_` of the result objects is made of.

Names of tasks, models and templates come from files, so everything is escaped. No scripts and no
styles of our own: a table looks as the notebook's other tables do.
"""

from __future__ import annotations

import html

import pandas as pd

from circuits.numbers import sized

MAX_ROWS = 12


def table_html(caption: str, frame: pd.DataFrame) -> str:
    """Returns a caption above the first rows of a frame, and how many rows are left out."""
    shown = frame.head(MAX_ROWS).to_html(index=False, border=0, na_rep="", float_format=sized)
    left = len(frame) - MAX_ROWS
    more = f"<p>and {left} more</p>" if left > 0 else ""
    return f"<div><p><b>{html.escape(caption)}</b></p>{shown}{more}</div>"
