"""What can go from a circuit once its size is chosen, until nothing more can.

A prefix of a ranking is an upper bound: ranks are predictions made in the whole model, and with the
components that carry a behaviour come all that rank between them. Pruning starts from the prefix
that the search chose and takes components out, by real interventions on the sizing prompts, for as
long as the circuit keeps the target. Each group of prompts has a circuit and a faithfulness of its
own, as in the search.

What goes first is what the circuit loses least by, or gains by: its effect in the circuit's own
run, from one backward pass, scored anew each time that something has gone. As many as possible go
at once, the first half of what is left or half as many again and again. Where not even the first
can go by itself, each of the others is tried by itself, in the same order, and when one goes the
turn goes on behind it. Pruning ends when every component has been tried by itself in the same
circuit and none could go.

So the guarantee is that **no single component can go**: without any one of them, faithfulness is
under the target on the sizing prompts. The circuit is minimal in that sense (1-minimal) and need
not be the smallest: pairs are not tried, and another order may end in another circuit. A component
that counters the behaviour cannot stay, since faithfulness is higher without it. And the circuit is
fitted to its prompts: on others it does less. A margin, in standard errors of faithfulness over the
sizing prompts, counters that: a component then goes only if the rest is over the target by so much.

The number of trials is bounded by a multiple of the sizes that a search may try, so that a model
with thousands of components is pruned in reasonable time. Where the bound ends it, `is_minimal`
says that the guarantee does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.discovery.ranked import Ranked, first_of
from circuits.discovery.search import (
    Search,
    candidate_sizes,
    faithfulness_error,
    group_faithfulness,
)
from circuits.intervene.experiment import Experiment

BUDGET = 3
"""The most that pruning costs, in trials for each size that a search may try."""
LEAST_BUDGET = 100
"""The trials that pruning may take in any case: a search among a few components takes a few."""
COST_OF_EFFECTS = 4
"""About how many trials one backward pass takes as long as: for fewer, none is made."""

Asking = Generator[Tensor | None, Tensor, None]
"""Asks for circuits to be tried, and for effects (None).

It is sent the circuit that is kept after a trial, or the effects of the circuit's components.
"""


@dataclass(frozen=True)
class Pruned:
    """What is left of each group's circuit.

    Attributes:
        chosen: The components that are left, for each group, in the order of the ranking.
        values: The metric of every sizing prompt with its group's circuit.
        is_minimal: Whether no single component can go, in any group, by the margin.
        n_trials: How many circuits were run.
        n_effects: How often effects were computed.
    """

    chosen: tuple[Tensor, ...]
    values: Float[Tensor, " batch"]
    is_minimal: bool
    n_trials: int
    n_effects: int


def prune(
    ranked: Ranked,
    experiment: Experiment,
    search: Search,
    *,
    margin: float = 0.0,
    on_trial: Callable[[], None] = lambda: None,
) -> Pruned:
    """Returns the circuits that a search chose, without what can go.

    The groups are pruned side by side, in the same forward passes. Where the search chose a circuit
    that is under the target (everything, by no more than rounding), or over it by less than the
    margin, what it has is held.

    Args:
        ranked: The components in order.
        experiment: The sizing prompts, the ones that were searched on.
        search: What the search chose on them.
        margin: By how many standard errors faithfulness must be over the target.
        on_trial: Called after each trial, to show progress.
    """
    groups = search.groups
    circuits = ranked.connected(first_of(ranked.orders, search.chosen))
    values = search.values_at(search.chosen)

    def surely(metric: Float[Tensor, " batch"]) -> Float[Tensor, " group"]:
        known = (metric[None], search.full, search.empty, groups)
        faithfulness = group_faithfulness(*known)[0]
        return faithfulness - margin * faithfulness_error(*known)[0] if margin else faithfulness

    floor = surely(values).clamp(max=search.target)
    asking = [_shrink(circuit) for circuit in circuits]
    asked: dict[int, Tensor | None] = {}

    def go_on(group: int, answer: Tensor | None) -> None:
        try:
            asked[group] = asking[group].send(answer)  # type: ignore[arg-type]
        except StopIteration:
            asked.pop(group, None)

    for group in range(len(circuits)):
        go_on(group, None)
    n_trials = n_effects = 0
    budget = max(LEAST_BUDGET, BUDGET * max(len(candidate_sizes(len(o))) for o in ranked.orders))
    while asked and n_trials + COST_OF_EFFECTS * n_effects < budget:
        trials = {group: wanted for group, wanted in asked.items() if wanted is not None}
        if not trials:  # All that go on wait for effects, so one pass serves all.
            effects = ranked.effects(experiment, circuits)
            n_effects += 1
            for group in list(asked):
                go_on(group, effects[group])
            continue
        tried = ranked.connected([trials.get(group, one) for group, one in enumerate(circuits)])
        metric = ranked.run(experiment, tried).cpu().double()
        n_trials += 1
        on_trial()
        holds = surely(metric) >= floor
        for group in trials:
            if holds[group]:
                circuits[group] = tried[group]
                values = torch.where(groups == group, metric, values)
            go_on(group, circuits[group])
    chosen = [
        order[torch.isin(order, one)] for order, one in zip(ranked.orders, circuits, strict=True)
    ]
    return Pruned(tuple(chosen), values, not asked, n_trials, n_effects)


def _shrink(circuit: Tensor) -> Asking:
    """Asks what it takes to shrink one group's circuit, given in the order of its ranking."""
    order, at_once = circuit.flip(0), len(circuit) // 2
    while True:
        if is_scored := len(circuit) >= 2 * COST_OF_EFFECTS:
            effects = yield None
            order = circuit[effects.argsort(stable=True)]
        before = len(order)
        while at_once >= COST_OF_EFFECTS and len(order) == before:
            circuit = yield order[at_once:]
            order = order[torch.isin(order, circuit)]
            at_once = at_once if len(order) < before else at_once // 2
        if len(order) < before:
            at_once = min(2 * at_once, len(order) // 2)
            continue
        n_stay = n_in_vain = 0  # those that could not go, and how many trials ago one last could
        while n_stay < len(order) and not (
            is_scored and len(order) < before and n_in_vain >= COST_OF_EFFECTS
        ):
            had = len(order)
            circuit = yield torch.cat([order[:n_stay], order[n_stay + 1 :]])
            stays = torch.isin(order, circuit)
            if len(circuit) < had:
                n_stay, n_in_vain = int(stays[:n_stay].sum()), 0
            else:
                n_stay, n_in_vain = n_stay + 1, n_in_vain + 1
            order = order[stays]
        if len(order) == before:
            return
        at_once = min(before - len(order), len(order) // 2)
