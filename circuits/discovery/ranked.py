"""Components in the order in which a circuit takes them, and what running the first of them does.

Heads, MLPs and edges have one order for all prompts. Attention edges have one for each template,
whose prompts share the meaning of their positions: a prompt of another template has no circuit
here. Both kinds have the same methods, so they are searched and measured in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.attribute import Scores
from circuits.attribute.in_circuit import attention_edge_effects_in, edge_effects_in
from circuits.discovery.rank import (
    Ranking,
    Selection,
    build_attention_circuit,
    build_circuit,
    n_holding,
    rank_attention_edges,
    rank_components,
    rest_of,
    select_edges,
)
from circuits.discovery.search import Search, find_smallest
from circuits.intervene.ablate import run_attention_edges, run_edges
from circuits.intervene.experiment import Experiment
from circuits.prompts import Prompts
from circuits.results.circuit import Circuit


@dataclass(frozen=True)
class RankedComponents:
    """Heads, MLPs or edges, in one order for all prompts."""

    scores: Scores
    granularity: str
    order: Ranking

    @classmethod
    def of(cls, scores: Scores, granularity: str, selection: Selection | str) -> RankedComponents:
        """Returns the components of a granularity, ranked by their scores."""
        return cls(scores, granularity, rank_components(scores, granularity, selection))

    @property
    def orders(self) -> list[Tensor]:
        """The one order."""
        return [self.order]

    def groups(self, prompts: Prompts) -> Int[Tensor, " batch"]:
        """Returns the one group for every prompt."""
        return torch.zeros(len(prompts), dtype=torch.long)

    def run(self, experiment: Experiment, chosen: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Returns the metric of every prompt, with only the chosen components intact."""
        return run_edges(experiment, select_edges(self.scores.graph, self.granularity, chosen[0]))

    def run_rest(self, experiment: Experiment, chosen: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Returns the metric with everything but the circuit intact."""
        return run_edges(experiment, rest_of(self.circuit(chosen)))

    def circuit(self, chosen: Sequence[Tensor]) -> Circuit:
        """Returns the circuit of the chosen components, without what is not connected."""
        return build_circuit(self.scores, self.granularity, chosen[0])

    def connected(self, chosen: Sequence[Tensor]) -> list[Tensor]:
        """Returns the chosen components without those that are not connected."""
        edges = self.circuit(chosen).edges
        stays = edges.flatten() if self.granularity == "edge" else edges.any(dim=1)
        return [chosen[0][stays[chosen[0]]]]

    def effects(self, experiment: Experiment, chosen: Sequence[Tensor]) -> list[Tensor]:
        """Returns what each of the chosen components does in their circuit, to first order."""
        edges = select_edges(self.scores.graph, self.granularity, chosen[0])
        effects = edge_effects_in(experiment, edges)
        return [
            (effects.flatten() if self.granularity == "edge" else effects.sum(dim=1))[chosen[0]]
        ]

    def counted(self, sizes: Int[Tensor, "trial group"]) -> Float[Tensor, "trial group"]:
        """Returns the sizes of the circuits of the first components."""
        circuits = [self.circuit(first_of(self.orders, size)) for size in sizes]
        return torch.tensor([[float(circuit.size)] for circuit in circuits]).double()

    def n_attribution(self, share: float) -> float:
        """Returns how many components hold `share` of all absolute attribution."""
        scores = self.scores
        is_edge = self.granularity == "edge"
        values = scores.edges[scores.graph.mask] if is_edge else scores.nodes[self.order]
        return n_holding(values, share)


@dataclass(frozen=True)
class RankedAttentionEdges:
    """Attention edges, in an order of its own for each template."""

    scores: Scores
    by_template: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, scores: Scores, prompts: Prompts, selection: Selection | str
    ) -> RankedAttentionEdges:
        """Returns the attention edges of the prompts' templates, ranked by their scores."""
        ranked = {
            template: rank_attention_edges(scores.attention_edges[template], selection)
            for template in prompts.groups()
        }
        return cls(scores, ranked)

    @property
    def orders(self) -> list[Tensor]:
        """The order of each template."""
        return list(self.by_template.values())

    def groups(self, prompts: Prompts) -> Int[Tensor, " batch"]:
        """Returns the number of each prompt's template; -1 where it is not among them."""
        number = {template: index for index, template in enumerate(self.by_template)}
        return torch.tensor([number.get(template, -1) for template in prompts.templates])

    def run(self, experiment: Experiment, chosen: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Returns the metric of every prompt, with only its template's chosen edges intact."""
        return run_attention_edges(experiment, self._kept(experiment.prompts, chosen))

    def run_rest(self, experiment: Experiment, chosen: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Returns the metric with only the attention edges outside the circuit intact."""
        outside = [
            order[~torch.isin(order, one)] for order, one in zip(self.orders, chosen, strict=True)
        ]
        return self.run(experiment, outside)

    def circuit(self, chosen: Sequence[Tensor]) -> Circuit:
        """Returns the circuit of the chosen attention edges of each template."""
        return build_attention_circuit(
            self.scores, dict(zip(self.by_template, chosen, strict=True))
        )

    def connected(self, chosen: Sequence[Tensor]) -> list[Tensor]:
        """Returns the chosen attention edges: each counts, whatever the others are."""
        return list(chosen)

    def effects(self, experiment: Experiment, chosen: Sequence[Tensor]) -> list[Tensor]:
        """Returns what each of the chosen edges does in its template's circuit, to first order."""
        kept = self._kept(experiment.prompts, chosen)
        effects = attention_edge_effects_in(experiment, kept)
        return [
            effects[template].flatten()[one]
            for template, one in zip(self.by_template, chosen, strict=True)
        ]

    def counted(self, sizes: Int[Tensor, "trial group"]) -> Float[Tensor, "trial group"]:
        """Returns the sizes: every attention edge counts."""
        return sizes.double()

    def n_attribution(self, share: float) -> float:
        """Returns how many attention edges hold `share` of the attribution, mean of templates."""
        held = [
            n_holding(self.scores.attention_edges[name].flatten(), share)
            for name in self.by_template
        ]
        return sum(held) / len(held)

    def _kept(
        self, prompts: Prompts, chosen: Sequence[Tensor]
    ) -> Bool[Tensor, "batch layer head query_pos key_pos"]:
        """The chosen attention edges at every prompt's own positions; no others."""
        graph, (batch, pos) = self.scores.graph, prompts.clean.shape
        device = prompts.clean.device
        kept = torch.zeros(
            batch, graph.n_layers, graph.n_heads, pos, pos, dtype=torch.bool, device=device
        )
        numbers = self.groups(prompts)
        for number, (template, order) in enumerate(zip(self.by_template, chosen, strict=True)):
            scores = self.scores.attention_edges[template]
            own = torch.zeros(scores.shape, dtype=torch.bool)
            own.view(-1)[order] = True
            length = scores.shape[-1]
            for row in (numbers == number).nonzero()[:, 0].tolist():
                kept[row, ..., :length, :length] = own.to(device)
        return kept


def first_of(orders: Sequence[Tensor], sizes: Int[Tensor, " group"]) -> list[Tensor]:
    """Returns the first components of each group's order, as many as its size says."""
    return [order[: int(size)] for order, size in zip(orders, sizes, strict=True)]


Ranked = RankedComponents | RankedAttentionEdges
"""Components of one granularity in order, for each group of prompts."""


def search_ranked(
    ranked: Ranked,
    experiment: Experiment,
    target: float,
    *,
    start: int | None = None,
    weights: Float[Tensor, "resample batch"] | None = None,
    on_trial: Callable[[], None] = lambda: None,
) -> Search:
    """Returns the search along a ranking, by real interventions on an experiment's prompts.

    The arguments are those of `circuits.discovery.search.find_smallest`.
    """
    orders = ranked.orders
    return find_smallest(
        lambda sizes: ranked.run(experiment, first_of(orders, sizes)),
        n_components=torch.tensor([len(order) for order in orders]),
        groups=ranked.groups(experiment.prompts),
        full=experiment.full,
        empty=experiment.empty,
        target=target,
        start=start,
        weights=weights,
        on_trial=on_trial,
    )
