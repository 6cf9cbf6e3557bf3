"""About how much work a search is, before it begins: what the time left is estimated from.

Steps differ in cost: scores are many passes forward and back, and a run of an edge circuit goes
through the model with inputs of its own for every component. The unit is a trial of a circuit of
heads; what costs how much was timed on the embedded pair (`--prompts 40`, one core).
"""

from __future__ import annotations

from circuits.discovery.evidence import N_RANDOM
from circuits.discovery.search import N_CURVE
from circuits.results.discover_config import DiscoverConfig

_COSTS = {
    "scored": 24.0,
    "head": 1.0,
    "mlp": 1.1,
    "edge": 2.0,
    "attention_edge": 1.4,
    "halves": 1.25,  # Half the prompts, of all granularities, and each half is scored anew.
}
_TRIALS = {"head": 30, "mlp": 10, "edge": 50, "attention_edge": 65}
"""About how many sizes the search tries in a model of a few thousand edges."""
_TRIALS_OF_HALVES = {"head": 14, "mlp": 5, "edge": 22, "attention_edge": 24}
"""About how many a search on halves tries, which begins nearer."""


def work_of_step(what: str) -> float:
    """Returns about how much work a step is, by the words that `on_step` is called with."""
    return _COSTS.get(what.rpartition(" ")[2], 1.0)


def work_of_search(config: DiscoverConfig) -> float:
    """Returns about how much work `discover` is: the steps that it tells of, each with its cost."""
    measured = N_CURVE + N_RANDOM + 1
    times = 2 if config.prune else 1  # Pruning takes about as many trials as the search.
    return _COSTS["scored"] + sum(
        (times * _TRIALS[granularity] + measured) * _COSTS[granularity]
        + times * config.redraws * _TRIALS_OF_HALVES[granularity] * _COSTS["halves"]
        for granularity in config.granularities
    )
