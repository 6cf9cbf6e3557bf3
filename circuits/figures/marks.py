"""What the drawings of circuits share: which circuits, how edges are read, what colours mean."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from circuits.figures.style import COLOURS, SHARED
from circuits.results.comparison import Comparison
from circuits.results.discovery import Evidence

DASHES = {"q": "dash", "k": "dot", "v": "solid", "": "solid"}
"""How the line of an edge is broken, by what it is read as."""

Point = tuple[float, float]


def circuits_of(comparison: Comparison, task: str, granularity: str) -> dict[str, Evidence]:
    """Returns what was found for a task, by side.

    Raises:
        ValueError: this granularity was not looked for.
    """
    found = comparison.discoveries[task]
    known = {
        side: {str(name): one for name, one in d.circuits.items()} for side, d in found.items()
    }
    first = known[comparison.sides[0]]
    if granularity not in first:
        raise ValueError(
            f"the comparison holds no circuits of granularity {granularity!r} for task {task!r}; "
            f"it holds {', '.join(first)}"
        )
    return {side: known[side][granularity] for side in comparison.sides}


def node_legend(comparison: Comparison) -> dict[str, str]:
    """Returns the colours of nodes by what they mean; none where there is one model."""
    if not comparison.is_pair:
        return {}
    only = {f"only {side}": COLOURS[side] for side in comparison.sides}
    return {"in both": SHARED} | only


def hover(middles: Sequence[Point], texts: Sequence[str]) -> go.Scatter:
    """Returns unseen markers at the middle of edges: lines alone have no text to point at."""
    return go.Scatter(
        x=[x for x, _ in middles],
        y=[y for _, y in middles],
        mode="markers",
        name="edges",
        marker={"size": 9, "opacity": 0},
        text=texts,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
