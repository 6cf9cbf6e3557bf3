"""Attribution: (model, prompts) -> a signed score for every head, MLP, edge and attention edge."""

from collections.abc import Callable

from circuits.ablate import Experiment
from circuits.attribute.attribution_patching import attribution_patching
from circuits.attribute.exact_patching import (
    exact_attention_edge_effects,
    exact_edge_effects,
    exact_node_effects,
)
from circuits.attribute.integrated_gradients import integrated_gradients
from circuits.attribute.scores import GRANULARITIES, Granularity, Scores

METHODS: dict[str, Callable[[Experiment], Scores]] = {
    "attribution_patching": attribution_patching,
    "integrated_gradients": integrated_gradients,
}
"""The methods by name, all of one signature."""

__all__ = [
    "GRANULARITIES",
    "METHODS",
    "Granularity",
    "Scores",
    "attribution_patching",
    "exact_attention_edge_effects",
    "exact_edge_effects",
    "exact_node_effects",
    "integrated_gradients",
]
