"""Post-training as it goes on, and what it comes to: cross-entropy against density."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.style import COLOURS, GREY, safe, styled

_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")


def training_figure(log: pd.DataFrame) -> go.Figure:
    """Returns the curves of a run: held-out CE or KL under its bound, density, and lambda.

    Args:
        log: The run's `log.jsonl`, as `pandas.read_json(path, lines=True)` reads it.

    Raises:
        ValueError: the log lacks a column, or was never evaluated.
    """
    bounded, limit, name = ("kl", "epsilon", "KL") if "kl" in log else ("ce", "tau", "CE")
    needed = ("step", bounded, limit, "density", "expected_density", "lambda")
    missing = [column for column in needed if column not in log]
    if missing:
        raise ValueError(
            f"the log has no column {missing[0]!r}; give the log.jsonl of `circuits train` "
            "(without --control), after its first evaluation"
        )
    measured: Any = log[log["ce"].notna()]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    figure.add_scatter(
        row=1, col=1, x=measured["step"], y=measured[bounded], name=f"{name}, held out",
        mode="lines+markers", line={"color": COLOURS["sparse"]},
    )  # fmt: skip
    figure.add_scatter(
        row=1, col=1, x=measured["step"], y=measured[limit], name="bound",
        mode="lines", line={"color": GREY, "dash": "dash"},
    )  # fmt: skip
    figure.add_scatter(
        row=2, col=1, x=log["step"], y=log["expected_density"], name="open, expected",
        mode="lines", line={"color": COLOURS["dense"], "width": 1},
    )  # fmt: skip
    figure.add_scatter(
        row=2, col=1, x=measured["step"], y=measured["density"], name="open, held out",
        mode="lines+markers", line={"color": COLOURS["sparse"]}, showlegend=True,
    )  # fmt: skip
    figure.add_scatter(
        row=3, col=1, x=log["step"], y=log["lambda"], name="lambda", mode="lines",
        line={"color": "#222222"},
    )  # fmt: skip
    figure.update_yaxes(title=f"{name} (nats)", row=1)
    figure.update_yaxes(title="open edges", type="log", tickformat=".2%", row=2)
    figure.update_yaxes(title="lambda", type="log", row=3)
    figure.update_xaxes(title="step", row=3)
    return styled(figure, "Post-training: cross-entropy, density and its price", 640)


def frontier_figure(points: pd.DataFrame, *, bound: float | None = None) -> go.Figure:
    """Returns cross-entropy against density, a line for each series, as in the paper's Figure 2.

    Args:
        points: Columns `series`, `density` (a share) and `ce` (nats); each series is drawn in the
            order of its density.
        bound: A cross-entropy to mark, such as the dense model's.

    Raises:
        ValueError: a column is missing, or a density is not in (0, 1].
    """
    missing = [name for name in ("series", "density", "ce") if name not in points]
    if missing:
        raise ValueError(f"the table of points has no column {missing[0]!r}")
    if not points["density"].between(0, 1, inclusive="right").all():
        raise ValueError("densities are shares: above 0 and at most 1")
    figure = go.Figure()
    for number, (series, rows) in enumerate(points.groupby("series", sort=False)):
        ordered = rows.sort_values("density")
        figure.add_scatter(
            x=ordered["density"],
            y=ordered["ce"],
            name=safe(str(series)),
            mode="lines+markers",
            line={"color": _SERIES[number % len(_SERIES)]},
            marker={"size": 8, "symbol": _SYMBOLS[number % len(_SYMBOLS)]},
            hovertemplate="%{x:.2%} open: %{y:.4f} nats",
        )
    if bound is not None:
        figure.add_hline(y=bound, line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(title="attention edges open", type="log", tickformat="~%", dtick="D2")
    figure.update_yaxes(title="cross-entropy (nats per token)")
    return styled(figure, "Cross-entropy against density", 460)
