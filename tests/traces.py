"""What a figure draws, for the tests of figures."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go


def layout(figure: go.Figure) -> Any:
    """Returns a figure's layout, whose fields plotly sets when the figure is made.

    It declares none of them, so a type checker knows none.
    """
    return figure.layout


def traces(figure: go.Figure, **properties: Any) -> list[Any]:
    """Returns a figure's traces, or those of them that have these properties.

    Their fields are not declared either.
    """
    drawn: Any = figure.data
    return [
        trace
        for trace in drawn
        if all(getattr(trace, name) == value for name, value in properties.items())
    ]
