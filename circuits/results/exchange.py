"""Circuits to and from networkx and GraphML, without loss.

`Circuit.to_networkx` gives the circuit alone, for measuring it. Here all nodes and edges of the
architecture are present, with their scores and with `in_graph`, and what belongs to none of them
(granularity, attention edges, how the circuit was found) stands in the attributes of the graph.
JSON in the form of EAP-IG and of the MIB benchmark is what `Circuit.save` and `Circuit.load` use.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import networkx as nx

from circuits.files import write_bytes
from circuits.graph import LOGITS, Graph, node_kind, node_layer
from circuits.reading import is_there, refused_as
from circuits.results.circuit import Circuit


def to_networkx(circuit: Circuit) -> nx.MultiDiGraph:
    """Returns the whole graph of the circuit's architecture, edges keyed by their names.

    Nodes have `kind`, `layer` and `in_graph`, edges `read` ("q", "k", "v" or ""), `score` and
    `in_graph`. The graph's own attributes are plain text, in JSON where they are not scalar.
    """
    content = circuit.to_json()
    found = nx.MultiDiGraph(
        cfg=json.dumps(content["cfg"]),
        granularity=content["granularity"],
        attention_edges=json.dumps(content["attention_edges"]),
        found=json.dumps(content["found"]),
    )
    graph = circuit.graph
    for row, name in enumerate(graph.sources):
        found.add_node(
            name,
            kind=node_kind(name),
            layer=node_layer(name),
            in_graph=bool(circuit.nodes[row]),
        )
    found.add_node(LOGITS, kind=LOGITS, layer=graph.n_layers, in_graph=True)
    for src, dest in graph.mask.nonzero().tolist():
        node, _, read = graph.destinations[dest].partition("<")
        found.add_edge(
            graph.sources[src],
            node,
            key=graph.edge_name(src, dest),
            read=read.rstrip(">"),
            score=float(circuit.scores[src, dest]),
            in_graph=bool(circuit.edges[src, dest]),
        )
    return found


def from_networkx(graph: nx.MultiDiGraph) -> Circuit:
    """Returns the circuit in a graph as `to_networkx` makes it.

    Raises:
        ValueError: the graph is cyclic, has nodes or edges that its architecture does not have,
            or lacks an attribute.
    """
    if not nx.is_directed_acyclic_graph(graph):
        cycle = nx.find_cycle(graph)
        raise ValueError(
            f"the graph is cyclic ({' -> '.join(str(edge[0]) for edge in cycle)}); a circuit runs "
            "forwards from input to logits"
        )
    try:
        content = {
            "cfg": json.loads(graph.graph["cfg"]),
            "nodes": {
                name: {"in_graph": bool(data["in_graph"])} for name, data in graph.nodes.items()
            },
            "edges": {
                _edge_name(src, dest, data): {
                    "score": float(data["score"]),
                    "in_graph": bool(data["in_graph"]),
                }
                for src, dest, data in graph.edges(data=True)
            },
            "granularity": graph.graph.get("granularity", "edge"),
            "attention_edges": json.loads(graph.graph.get("attention_edges", "{}")),
            "found": json.loads(graph.graph.get("found", "{}")),
        }
    except KeyError as error:
        raise ValueError(
            f"the graph has no attribute {error}; it needs `cfg` (n_layers, n_heads, "
            "parallel_attn_mlp, as JSON), each node `in_graph`, each edge `read`, `score` and "
            "`in_graph`"
        ) from error
    return Circuit.from_json(content)


def write_graphml(circuit: Circuit, path: str | Path) -> None:
    """Writes the whole graph as GraphML, to a temporary file that is then renamed."""
    content = io.BytesIO()
    nx.write_graphml(to_networkx(circuit), content)
    write_bytes(Path(path), content.getvalue())


def read_graphml(path: str | Path) -> Circuit:
    """Returns the circuit in a GraphML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not GraphML, or not a graph as `to_networkx` makes it.
    """
    if not is_there(Path(path)):
        raise FileNotFoundError(f"there is no GraphML file {path}")
    with refused_as(str(path), "it is not the GraphML of a circuit"):
        return from_networkx(nx.read_graphml(path, force_multigraph=True))


def check_fits(circuit: Circuit, graph: Graph) -> None:
    """Refuses a circuit of another architecture.

    Raises:
        ValueError: layers, heads, MLPs or their order differ.
    """
    if circuit.graph != graph:
        raise ValueError(
            f"the circuit is of {circuit.graph}, the model has {graph}; give a circuit of this "
            "architecture"
        )


def _edge_name(src: str, dest: str, data: dict[str, object]) -> str:
    return f"{src}->{dest}<{data['read']}>" if data["read"] else f"{src}->{dest}"
