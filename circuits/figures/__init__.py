"""Figures: a comparison in, a plotly figure out.

One function a figure. None writes files or changes plotly's defaults: the look is given to each
figure by `circuits.figures.style`.
"""

from circuits.figures.attention import attention_figure, token_labels
from circuits.figures.diagram import circuit_figure
from circuits.figures.patterns import patterns_figure
from circuits.figures.robustness import robustness_figure
from circuits.figures.sizes import density_figure, faithfulness_figure, sizes_figure
from circuits.figures.style import COLOURS, UNITS, counted, rounded
from circuits.figures.training import frontier_figure, training_figure

__all__ = [
    "COLOURS",
    "UNITS",
    "attention_figure",
    "circuit_figure",
    "counted",
    "density_figure",
    "faithfulness_figure",
    "frontier_figure",
    "patterns_figure",
    "robustness_figure",
    "rounded",
    "sizes_figure",
    "token_labels",
    "training_figure",
]
