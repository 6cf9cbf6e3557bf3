"""Attribution: (model, prompts) -> a signed score for every head, MLP, edge and attention edge."""

from typing import Protocol, cast, runtime_checkable

from circuits.attribute.activation_path import integrated_activations
from circuits.attribute.attribution_patching import attribution_patching
from circuits.attribute.exact_patching import (
    exact_attention_edge_effects,
    exact_edge_effects,
    exact_node_effects,
    exact_patching,
)
from circuits.attribute.gim import gim
from circuits.attribute.input_path import gradient_average, integrated_gradients
from circuits.attribute.local_patching import local_patching
from circuits.attribute.relp import relevance_patching
from circuits.attribute.scores import Scores
from circuits.choices import ATTRIBUTION_METHODS, AttributionMethod
from circuits.intervene.experiment import Experiment


@runtime_checkable
class Method(Protocol):
    """What scores every component of an experiment."""

    def __call__(self, experiment: Experiment, *, attention_edges: bool = True) -> Scores:
        """Returns the scores; those of attention edges are left out where not wanted."""
        ...


METHODS: dict[str, Method] = {
    "attribution_patching": attribution_patching,
    "integrated_gradients": integrated_gradients,
    "integrated_activations": integrated_activations,
    "gradient_average": gradient_average,
    "gim": gim,
    "relevance_patching": relevance_patching,
    "local_patching": local_patching,
    "exact_patching": exact_patching,
}
"""The methods by name, all of one signature."""


def register_method(name: str, method: Method, sentence: str) -> Method:
    """Adds a method to `METHODS`, so that `DiscoverConfig.method` can name it; returns it.

    Args:
        name: Its name in files, in tables and on the command line.
        method: A function of an experiment, as the others are. Its keyword arguments in addition to
            `attention_edges` are its options (`DiscoverConfig.method_options`).
        sentence: What it does, in a sentence, for lists of methods.

    Raises:
        ValueError: another method already has that name.
    """
    if METHODS.get(name, method) is not method:
        raise ValueError(f"a method named {name!r} is already registered; choose another name")
    METHODS[name] = method
    ATTRIBUTION_METHODS[cast("AttributionMethod", name)] = sentence
    return method


__all__ = [
    "METHODS",
    "Method",
    "Scores",
    "attribution_patching",
    "exact_attention_edge_effects",
    "exact_edge_effects",
    "exact_node_effects",
    "exact_patching",
    "gim",
    "gradient_average",
    "integrated_activations",
    "integrated_gradients",
    "local_patching",
    "register_method",
    "relevance_patching",
]
