"""What the explorer of the report shows, as plain data: the circuits, their heads, the patterns.

The page's scripts draw it. Scores are rounded to four digits and patterns to thousandths, which no
picture shows; sizes are those of the whole circuit, however many of its edges the page holds.
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from typing import Any

from jaxtyping import Int
from torch import Tensor

from circuits.figures import UNITS, spelled_token
from circuits.graph import LOGITS
from circuits.report.opening import pictured_head
from circuits.report.words import edges_first
from circuits.results.circuit import Circuit
from circuits.results.comparison import AttentionExample, Comparison
from circuits.results.stability import Stability

MOST_NUMBERS = 400_000
"""Numbers in all attention patterns of the page; with more, only heads of the circuits are kept."""
MOST_EDGES = 100_000
"""Edges of all circuits of the page, about 2 MB; with more, big circuits lose their weakest."""


def explorer_data(comparison: Comparison, *, most_edges: int = MOST_EDGES) -> dict[str, Any]:
    """Returns everything that the scripts show: units, and what was found in each task."""
    sizes = [
        int(one.circuit.edges.sum())
        for task in comparison.discoveries
        for name in _drawn_as_graph(comparison, task)
        for side in comparison.sides
        for one in [comparison.discoveries[task][side].circuits[name]]
    ]
    cap = largest_share(sizes, most_edges)
    changed = pictured_head(comparison)
    return {
        "sides": comparison.sides,
        "units": UNITS,
        "picture": None if changed is None else {"task": changed.task, "head": changed.head},
        "tasks": {task: _task_data(comparison, task, cap) for task in comparison.discoveries},
    }


def largest_share(sizes: list[int], whole: int) -> int:
    """Returns the most that each of several may have so that all together have at most `whole`.

    Those that need less leave the rest to the others.
    """
    ordered = sorted(sizes)
    before = list(accumulate(ordered, initial=0))
    # With the first k whole and the others cut to the k-th's size, so much would be taken.
    taken = [before[k] + size * (len(sizes) - k) for k, size in enumerate(ordered)]
    k = bisect(taken, whole)
    return max(sizes, default=0) if k == len(sizes) else (whole - before[k]) // (len(sizes) - k)


def _drawn_as_graph(comparison: Comparison, task: str) -> list[str]:
    """The granularities of a task that are shown as nodes and edges: edges first.

    Attention edges are drawn over the tokens of a prompt; where there is none, as nodes.
    """
    with_arcs = bool(comparison.examples.get(task))
    known = edges_first(comparison, task)
    return [name for name in known if name != "attention_edge" or not with_arcs]


def _task_data(comparison: Comparison, task: str, cap: int) -> dict[str, Any]:
    found, examples = comparison.discoveries[task], comparison.examples.get(task, ())
    as_graph = _drawn_as_graph(comparison, task)
    names = [*as_graph, *(name for name in edges_first(comparison, task) if name not in as_graph)]
    circuits = {
        name: {side: found[side].circuits[name].circuit for side in comparison.sides}
        for name in names
    }
    wanted = {head for pair in circuits.values() for one in pair.values() for head in one.heads}
    n_all = sum(len(several) for several in comparison.examples.values())
    return {
        "circuits": {
            name: {
                side: _graph_data(circuit, found[side].circuits[name].stability, cap)
                if name in as_graph
                else _arcs_data(circuit, examples)
                for side, circuit in pair.items()
            }
            for name, pair in circuits.items()
        },
        "examples": [_example_data(example, wanted, n_all) for example in examples],
        "roles": {
            side: {
                role.head: [role.role, role.twin, _rounded(role.similarity or 0.0)]
                for role in comparison.roles
                if role.task == task and role.model == side
            }
            for side in comparison.sides
        },
    }


def _graph_data(circuit: Circuit, stability: Stability | None, cap: int) -> dict[str, Any]:
    """A circuit as nodes and edges, the strongest edge first; ends are numbers of `nodes`."""
    graph = circuit.graph
    totals = circuit.scores.sum(dim=1).tolist()
    score_of = dict(zip(graph.sources, totals, strict=True))
    scores = circuit.scores[circuit.edges]
    order = scores.abs().argsort(descending=True, stable=True)[:cap]
    ends = circuit.edges.nonzero()[order].tolist()
    nodes = [name for row, name in enumerate(graph.sources) if circuit.nodes[row]] + [LOGITS]
    number = {name: place for place, name in enumerate(nodes)}
    reads = [graph.destinations[dest].partition("<") for _, dest in ends]
    return {
        "size": circuit.size,
        "n_edges": len(scores),
        "nodes": nodes,
        "totals": [_rounded(score_of.get(name, 0.0)) for name in nodes],
        "src": [number[graph.sources[src]] for src, _ in ends],
        "dest": [number[node] for node, _, _ in reads],
        # One letter an edge: q, k or v of a head, - of an MLP or the logits.
        "read": "".join(read[:1] or "-" for _, _, read in reads),
        "score": [_rounded(score) for score in scores[order].tolist()],
    } | _halves_data(circuit, stability, nodes, order)


def _halves_data(
    circuit: Circuit, stability: Stability | None, nodes: list[str], order: Int[Tensor, " edge"]
) -> dict[str, Any]:
    """Of how many halves of the prompts the circuits have each node and edge, where it is known."""
    if stability is None:
        return {}
    shares = dict(
        zip(circuit.graph.sources[1:], stability.node_shares(circuit)[1:].tolist(), strict=True)
    )
    found = {
        "halves": stability.n,
        "nodes_in": [round(shares.get(name, 1.0) * stability.n) for name in nodes],
    }
    edges = stability.edge_shares(circuit)
    if edges is not None:
        counts = (edges[circuit.edges][order] * stability.n).round().int()
        found["edges_in"] = counts.tolist()
    return found


def _arcs_data(circuit: Circuit, examples: tuple[AttentionExample, ...]) -> dict[str, Any]:
    """A circuit of attention edges on each prompt, the strongest first: head, query, key, score."""
    return {
        "size": circuit.size,
        "prompts": [
            [
                [f"a{one.layer}.h{one.head}", one.query, one.key, _rounded(one.score)]
                for one in sorted(
                    circuit.attention_edges.get(example.template, []),
                    key=lambda edge: -abs(edge.score),
                )
            ]
            for example in examples
        ],
    }


def _example_data(example: AttentionExample, wanted: set[str], n_all: int) -> dict[str, Any]:
    """A prompt's tokens and patterns: of all heads, or of those wanted where they are too many."""
    n_heads = sum(len(layer) for layers in example.patterns.values() for layer in layers)
    every = n_heads * len(example.clean) ** 2 * n_all <= MOST_NUMBERS
    return {
        "tokens": [spelled_token(token) for token in example.clean],
        "answer": spelled_token(example.answer),
        "patterns": {
            side: {
                # In thousandths, and without the positions that a query cannot see: half the size.
                f"a{layer}.h{head}": [
                    [round(1000 * share) for share in query[: place + 1]]
                    for place, query in enumerate(pattern)
                ]
                for layer, layer_patterns in enumerate(layers)
                for head, pattern in enumerate(layer_patterns)
                if every or f"a{layer}.h{head}" in wanted
            }
            for side, layers in example.patterns.items()
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
