"""Figures: a comparison in, a plotly figure out.

One function a figure. None writes files or changes plotly's defaults: the look is given to each
figure by `circuits.figures.style`.
"""

from circuits.figures.arcs import arcs_figure
from circuits.figures.attention import attention_figure, spelled_token, token_labels
from circuits.figures.density import density_figure, head_density_figure
from circuits.figures.diagram import circuit_figure
from circuits.figures.export import PRINT_WIDTHS, for_print, save_figure
from circuits.figures.patterns import head_figure, patterns_figure
from circuits.figures.robustness import robustness_figure
from circuits.figures.score_split import score_split_figure
from circuits.figures.sizes import faithfulness_figure, sizes_figure
from circuits.figures.strongest import strongest_figure
from circuits.figures.style import COLOURS, UNITS, counted
from circuits.figures.training import frontier_figure, training_figure

__all__ = [
    "COLOURS",
    "PRINT_WIDTHS",
    "UNITS",
    "arcs_figure",
    "attention_figure",
    "circuit_figure",
    "counted",
    "density_figure",
    "faithfulness_figure",
    "for_print",
    "frontier_figure",
    "head_density_figure",
    "head_figure",
    "patterns_figure",
    "robustness_figure",
    "save_figure",
    "score_split_figure",
    "sizes_figure",
    "spelled_token",
    "strongest_figure",
    "token_labels",
    "training_figure",
]
