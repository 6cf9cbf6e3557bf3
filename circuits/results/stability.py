"""Which components are in a circuit that is found again on halves of the prompts, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.results.circuit import Circuit


@dataclass(frozen=True)
class Stability:
    """How often the circuits of halves agree on which components are in.

    Kept compactly, since a circuit may have tens of thousands of edges: for each count of halves
    the places of what is in exactly so many.

    Attributes:
        n: How many halves there are.
        jaccard: Shared components as a share of those in either of two halves' circuits, mean over
            all pairs of halves; 1 where both are empty.
        nodes: For 1 to n, the rows of the sources that are in exactly so many of the circuits.
        edges: The same for edges, by their place in the flat matrix of sources and destinations;
            none of a circuit of heads or MLPs.
    """

    n: int
    jaccard: float
    nodes: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, circuits: Sequence[Circuit]) -> Stability | None:
        """Returns how the circuits of halves agree.

        None of fewer than two, and of attention edges, which are of prompts: two halves do not have
        the same.
        """
        if len(circuits) < 2 or circuits[0].granularity == "attention_edge":
            return None
        of_edges = circuits[0].granularity == "edge"
        nodes = torch.stack([circuit.nodes for circuit in circuits])
        edges = torch.stack([circuit.edges.flatten() for circuit in circuits])
        chosen = torch.stack([_chosen(circuit) for circuit in circuits])
        pairs = list(combinations(chosen, 2))
        jaccard = sum(_jaccard(one, other) for one, other in pairs) / len(pairs)
        places = [_by_count(which) for which in (nodes, edges)]
        return cls(len(circuits), jaccard, places[0], places[1] if of_edges else ())

    def node_shares(self, circuit: Circuit) -> Float[Tensor, " src"]:
        """Returns the share of halves whose circuit has each source of the circuit's graph."""
        return self._shares(self.nodes, circuit.nodes)

    def edge_shares(self, circuit: Circuit) -> Float[Tensor, "src dest"] | None:
        """Returns the same for edges; None of circuits of heads or MLPs, which choose no edges."""
        return self._shares(self.edges, circuit.edges) if self.edges else None

    def n_in(self, granularity: str, circuit: Circuit, share: float) -> int:
        """Returns how many components are in at least a share of the halves' circuits."""
        edges = self.edge_shares(circuit)
        if granularity == "edge" and edges is not None:
            return int((edges >= share).sum())
        rows = circuit.graph.nodes_of_kind("head" if granularity == "head" else "mlp")
        return int((self.node_shares(circuit)[rows] >= share).sum())

    def _shares(self, places: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
        shares = torch.zeros(like.numel())
        for count, some in enumerate(places, start=1):
            shares[list(some)] = count / self.n
        return shares.view(like.shape)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Stability:
        """Returns what `dataclasses.asdict` gave, after JSON."""
        nodes, edges = (tuple(map(tuple, content[name])) for name in ("nodes", "edges"))
        return cls(content["n"], content["jaccard"], nodes, edges)


def chance_jaccard(sizes: Sequence[float], n_components: float) -> float:
    """Returns about what `Stability.jaccard` would be of random circuits of these sizes.

    Two random sets of a and b of N components share ab / N in the mean; the Jaccard index of such
    two is taken, and its mean over pairs of halves.
    """
    found = []
    for one, other in combinations(sizes, 2):
        shared = one * other / n_components if n_components else 0.0
        either = one + other - shared
        found.append(shared / either if either else 1.0)
    return sum(found) / len(found)


def _chosen(circuit: Circuit) -> Bool[Tensor, " components"]:
    """Which components a circuit has, of those that its granularity chooses among."""
    if circuit.granularity == "edge":
        return circuit.edges.flatten()
    return circuit.nodes[
        circuit.graph.nodes_of_kind("head" if circuit.granularity == "head" else "mlp")
    ]


def _jaccard(one: Bool[Tensor, " components"], other: Bool[Tensor, " components"]) -> float:
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def _by_count(which: Bool[Tensor, "half place"]) -> tuple[tuple[int, ...], ...]:
    counts = which.sum(dim=0)
    return tuple(
        tuple((counts == count).nonzero()[:, 0].tolist()) for count in range(1, len(which) + 1)
    )
