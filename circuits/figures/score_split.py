"""What put an attention score where it is: a map of pairs of sources, and the strongest of them."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from circuits.figures.style import COUNTERS, SUPPORTS, safe, styled
from circuits.results.score_split import ScoreSplit

MOST_SOURCES = 24
"""Sources shown by name on an axis; the others are added up."""
OTHERS = "others"


def score_split_figure(
    splits: ScoreSplit | Mapping[str, ScoreSplit], *, n_pairs: int = 10
) -> go.Figure:
    """Returns a score over sources of the query (rows) and of the key, and its strongest pairs.

    Several splits, by the names of their models, stand side by side, their colours of one scale.
    Of a model with many sources those with the greatest sums of absolute values are shown.

    Args:
        splits: One split, or several by name.
        n_pairs: How many of the strongest pairs, by absolute value, are listed under the map.

    Raises:
        ValueError: nothing to draw.
    """
    several = {splits.model: splits} if isinstance(splits, ScoreSplit) else splits
    if not several or n_pairs < 1:
        raise ValueError("give at least one split, and at least one pair to list")
    maps = [_condensed(split) for split in several.values()]
    most = max(abs(value) for _, _, values in maps for row in values for value in row) or 1.0
    longest = max(len(rows) for rows, _, _ in maps)
    heights = (60 + 18 * longest, 40 + 18 * n_pairs)
    figure = make_subplots(
        rows=2,
        cols=len(several),
        subplot_titles=[_title(name, split) for name, split in several.items()]
        + ["strongest pairs, query x key"] * len(several),
        row_heights=[height / sum(heights) for height in heights],
        vertical_spacing=100 / (sum(heights) + 100),
        horizontal_spacing=0.2 / len(several),
    )
    for column, (split, (rows, columns, values)) in enumerate(
        zip(several.values(), maps, strict=True), start=1
    ):
        figure.add_heatmap(
            row=1,
            col=column,
            x=columns,
            y=rows,
            z=values,
            zmin=-most,
            zmax=most,
            colorscale=[[0, COUNTERS], [0.5, "#FFFFFF"], [1, SUPPORTS]],
            showscale=False,
            hovertemplate="query from %{y}, key from %{x}: %{z:.3f}<extra></extra>",
        )
        shown = split.to_dataframe().head(n_pairs)[::-1]
        figure.add_bar(
            row=2,
            col=column,
            orientation="h",
            x=shown.score.tolist(),
            y=[f"{q} x {k}" for q, k in zip(shown.query_source, shown.key_source, strict=True)],
            marker_color=[SUPPORTS if value > 0 else COUNTERS for value in shown.score],
            showlegend=False,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
        figure.update_xaxes(tickangle=90, row=1, col=column)
        figure.update_yaxes(autorange="reversed", row=1, col=column)
    figure.update_annotations(font={"size": 12})
    first = next(iter(several.values()))
    title = f"why {safe(str(first))}: what pairs of sources add to q.k (green) or take off (pink)"
    return styled(figure, title, 220 + sum(heights), legend_rows=0)


def _title(name: str, split: ScoreSplit) -> str:
    """A panel's title: the model, its score and what the gate makes of it."""
    over, n_to_shut = split.over_threshold, split.n_to_shut
    if over is None:
        gate = f"attention {split.pattern:.2f}, no threshold"
    elif over <= 0:
        gate = f"shut, {-over:.2f} under the threshold"
    else:
        gate = f"open, {over:.2f} over the threshold"
        gate += "" if n_to_shut is None else f", shut without {n_to_shut} of {split.pairs.numel()}"
    return f"{safe(name)}: score {split.score:.2f}<br>{gate}"


def _condensed(split: ScoreSplit) -> tuple[list[str], list[str], list[list[float]]]:
    """Names of rows and columns, and values, of the sources with the most on each axis."""
    rows, values = _strongest(list(split.sources), split.pairs.double())
    columns, values = _strongest(list(split.sources), values.T)
    return rows, columns, values.T.tolist()


def _strongest(
    names: list[str], values: Float[Tensor, "src other"]
) -> tuple[list[str], Float[Tensor, "shown other"]]:
    """The rows with the greatest sums of absolute values, in their order, then all others' sum."""
    if len(names) <= MOST_SOURCES:
        return names, values
    order = values.abs().sum(dim=1).argsort(descending=True)
    kept, left = order[: MOST_SOURCES - 1].sort().values, order[MOST_SOURCES - 1 :]
    shown = torch.cat([values[kept], values[left].sum(dim=0, keepdim=True)])
    return [*(names[row] for row in kept.tolist()), OTHERS], shown
