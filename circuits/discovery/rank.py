"""From scores to circuits: rank components, keep the first k, drop what is not connected.

Components are ranked by the absolute value of their score, since a component that counters the
behaviour is as much a part of its mechanism as one that drives it. Two other rules are there to
compare with: `signed` puts what supports the behaviour first, `greedy` grows the circuit from the
logits, so that every edge leads somewhere as soon as it is chosen. What no path from `input` to
`logits` inside the circuit passes through changes nothing; it is dropped and not counted.
"""

from __future__ import annotations

from heapq import heappop, heappush

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.attribute import Scores
from circuits.choices import Granularity, Selection
from circuits.graph import Graph, NodeKind
from circuits.results.circuit import AttentionEdge, Circuit

Ranking = Int[Tensor, " components"]


def components_of(graph: Graph, granularity: Granularity | str) -> Ranking:
    """Returns all heads or MLPs (as rows) or all edges (as flat indices), in the graph's order."""
    if granularity == "edge":
        return graph.mask.flatten().nonzero()[:, 0]
    # An attention-only model has no MLPs, and torch takes no numbers for floats.
    return torch.tensor(graph.nodes_of_kind(_node_kind(granularity)), dtype=torch.long)


def rank_components(
    scores: Scores, granularity: Granularity | str, selection: Selection | str = "absolute"
) -> Ranking:
    """Returns the heads or MLPs (as rows) or the edges (as flat indices), strongest first.

    Nodes have no order of growth: there `greedy` is `absolute`.
    """
    if granularity == "edge" and selection == "greedy":
        return _rank_greedily(scores)
    candidates = components_of(scores.graph, granularity)
    values = scores.edges.flatten() if granularity == "edge" else scores.nodes
    strength = values[candidates]
    return candidates[by_strength(strength, selection)]


def rank_attention_edges(
    scores: Float[Tensor, "layer head query_pos key_pos"],
    selection: Selection | str = "absolute",
) -> Ranking:
    """Returns the causal pairs of all positions as flat indices, strongest first."""
    allowed = torch.ones_like(scores, dtype=torch.bool).tril()
    candidates = allowed.flatten().nonzero()[:, 0]
    return candidates[by_strength(scores.flatten()[candidates], selection)]


def by_strength(values: Tensor, selection: Selection | str) -> Ranking:
    """Returns the places of values, strongest first; `greedy` is `absolute` here."""
    strength = values if selection == "signed" else values.abs()
    return strength.argsort(descending=True, stable=True)


def _rank_greedily(scores: Scores) -> Ranking:
    """Edges in the order in which a circuit grows from the logits, always by its strongest.

    An edge may be added once the node that it leads to is in. Source: the greedy search of
    EAP-IG (Hanna et al. 2024, arXiv 2403.17806).
    """
    graph, width = scores.graph, scores.graph.n_destinations
    strength = scores.edges.abs().tolist()
    open_: list[tuple[float, int]] = []

    def admit(columns: list[int]) -> None:
        for column in columns:
            for row in graph.mask[:, column].nonzero()[:, 0].tolist():
                heappush(open_, (-strength[row][column], row * width + column))

    admit([width - 1])
    seen: set[int] = {0}  # Nothing leads to the input.
    order = []
    while open_:
        _, edge = heappop(open_)
        order.append(edge)
        row = edge // width
        if row not in seen:
            seen.add(row)
            admit(graph.node_destinations[graph.sources[row]])
    return torch.tensor(order)


def select_edges(
    graph: Graph, granularity: Granularity | str, chosen: Ranking
) -> Bool[Tensor, "src dest"]:
    """Returns the edges that stay when only the `chosen` components of a granularity do.

    Choosing among heads leaves the MLPs intact, choosing among MLPs the heads.
    """
    if granularity == "edge":
        edges = torch.zeros(graph.mask.numel(), dtype=torch.bool)
        edges[chosen] = True
        return edges.view_as(graph.mask)
    rows = torch.ones(graph.n_sources, dtype=torch.bool)
    rows[graph.nodes_of_kind(_node_kind(granularity))] = False
    rows[chosen] = True
    return graph.mask & rows[:, None]


def rest_of(circuit: Circuit) -> Bool[Tensor, "src dest"]:
    """Returns the edges that stay when the components outside a circuit do, and no others.

    The complement within the circuit's granularity: of heads, the other heads with all MLPs; of
    MLPs, the other MLPs with all heads; of edges, the other edges.
    """
    graph = circuit.graph
    if circuit.granularity == "edge":
        return graph.mask & ~circuit.edges
    candidates = components_of(graph, circuit.granularity)
    return select_edges(graph, circuit.granularity, candidates[~circuit.nodes[candidates]])


def build_circuit(scores: Scores, granularity: Granularity | str, chosen: Ranking) -> Circuit:
    """Returns the circuit of the chosen heads, MLPs or edges, without what is not connected."""
    graph = scores.graph
    edges = graph.connected(select_edges(graph, granularity, chosen))
    nodes = edges.any(dim=1)
    nodes[0] = True
    return Circuit(
        graph=graph, granularity=granularity, nodes=nodes, edges=edges, scores=scores.edges
    )


def build_circuit_above(
    scores: Scores, granularity: Granularity | str, threshold: float
) -> Circuit:
    """Returns the circuit of all heads, MLPs or edges whose absolute score is at least `threshold`.

    Raises:
        ValueError: the threshold is negative or no number.
    """
    if not threshold >= 0:
        raise ValueError(f"the threshold must be 0 or more, in the metric's units; got {threshold}")
    ranking = rank_components(scores, granularity)
    values = scores.edges.flatten() if granularity == "edge" else scores.nodes
    return build_circuit(scores, granularity, ranking[values[ranking].abs() >= threshold])


def build_attention_circuit(scores: Scores, chosen: dict[str, Ranking]) -> Circuit:
    """Returns the circuit of the attention edges chosen in each template.

    Its nodes are the heads that have one, and all MLPs; its edges those among its nodes.
    """
    graph = scores.graph
    picked: dict[str, list[AttentionEdge]] = {}
    nodes = torch.zeros(graph.n_sources, dtype=torch.bool)
    nodes[[0, *graph.nodes_of_kind("mlp")]] = True
    for template, indices in chosen.items():
        values = scores.attention_edges[template]
        picked[template] = []
        for flat in indices.tolist():
            place = [int(i) for i in torch.unravel_index(torch.tensor(flat), values.shape)]
            picked[template].append(AttentionEdge(*place, score=float(values.flatten()[flat])))
            nodes[graph.head_sources(place[0]).start + place[1]] = True
    allowed = graph.mask & nodes[:, None]
    for row in (~nodes).nonzero()[:, 0].tolist():
        allowed[:, graph.node_destinations[graph.sources[row]]] = False
    return Circuit(
        graph=graph,
        granularity="attention_edge",
        nodes=nodes,
        edges=allowed,
        scores=scores.edges,
        attention_edges=picked,
    )


def n_holding(values: Float[Tensor, " components"], share: float) -> int:
    """Returns how many of the strongest components hold `share` of all absolute attribution.

    A count without interventions, 0 where all scores are zero. It favours gated models by
    construction: an attention edge that is shut in both runs scores exactly 0. Whether arXiv
    2512.05865 counts in this way could not be verified.
    """
    held = values.abs().flatten().sort(descending=True).values.double().cumsum(0)
    if len(held) == 0 or held[-1] == 0:
        return 0
    return int((held < share * held[-1]).sum()) + 1


def _node_kind(granularity: Granularity | str) -> NodeKind:
    if granularity not in ("head", "mlp"):
        raise ValueError(f"{granularity!r} is not a kind of node; 'head' and 'mlp' are")
    return granularity
