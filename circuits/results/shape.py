"""A circuit as a graph, in a few numbers."""

from __future__ import annotations

import networkx as nx

from circuits.graph import INPUT, LOGITS
from circuits.results.circuit import Circuit


def circuit_shape(circuit: Circuit) -> dict[str, float]:
    """Returns graph measures of a circuit: nodes, edges, paths, depth, mean in- and out-degree.

    `paths` counts the ways from `input` to `logits`; `depth` is the number of edges on the longest.
    """
    graph = circuit.to_networkx()
    n_paths: dict[str, int] = dict.fromkeys(graph, 0)
    if INPUT in n_paths:
        n_paths[INPUT] = 1
    for node in nx.topological_sort(graph):
        for _, dest in graph.out_edges(node):
            n_paths[dest] += n_paths[node]
    inner = [node for node in graph if node not in (INPUT, LOGITS)]
    return {
        "nodes": len(inner),
        "edges": graph.number_of_edges(),
        "paths": n_paths[LOGITS],
        "depth": nx.dag_longest_path_length(nx.DiGraph(graph)) if graph.number_of_edges() else 0,
        "mean_in_degree": _mean([graph.in_degree(node) for node in inner]),
        "mean_out_degree": _mean([graph.out_degree(node) for node in inner]),
    }


def _mean(counts: list[int]) -> float:
    return sum(counts) / len(counts) if counts else 0.0
