"""A circuit: the components of a graph that carry a behaviour, with their scores.

Circuits are saved as JSON in the form of EAP-IG and of the MIB benchmark (`cfg`, `nodes`,
`edges`, every node and edge present with `in_graph` and its score); whatever that form has no
place for (granularity, attention edges, how the circuit was found) stands at the top, next to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.choices import GRANULARITIES, Granularity, check_choice
from circuits.files import write_json
from circuits.graph import LOGITS, READS, Graph, node_kind, node_layer
from circuits.numbers import sized
from circuits.results.notebook import table_html

_COLUMNS: dict[str, tuple[str, ...]] = {
    "head": ("component", "layer", "score"),
    "mlp": ("component", "layer", "score"),
    "edge": ("component", "source", "destination", "score"),
    "attention_edge": ("template", "layer", "head", "query", "key", "score"),
}


@dataclass(frozen=True)
class AttentionEdge:
    """One link from a query position to a key position inside a head, with its score."""

    layer: int
    head: int
    query: int
    key: int
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Chosen components of a graph.

    Attributes:
        graph: The graph that the components are of.
        granularity: What was chosen, which is what `size` counts.
        nodes: The sources in the circuit. Where heads were chosen all MLPs are in, where MLPs
            were chosen all heads, where attention edges were chosen all of both.
        edges: The edges in the circuit.
        scores: Signed attribution of every edge.
        attention_edges: For the granularity `attention_edge`, those chosen in each template.
        provenance: How it was found: model, task, method, ablation, target, faithfulness and so on.
    """

    graph: Graph
    granularity: Granularity | str
    nodes: Bool[Tensor, " src"]
    edges: Bool[Tensor, "src dest"]
    scores: Float[Tensor, "src dest"]
    attention_edges: dict[str, list[AttentionEdge]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("granularity", self.granularity, GRANULARITIES)
        for name, matrix in (("edges", self.edges), ("scores", self.scores)):
            if matrix.shape != self.graph.mask.shape:
                raise ValueError(
                    f"{name} has shape {tuple(matrix.shape)}, the graph needs "
                    f"{tuple(self.graph.mask.shape)}"
                )

    @classmethod
    def from_heads(cls, graph: Graph, heads: Iterable[str]) -> Circuit:
        """Returns the circuit of these heads and all MLPs, as one of the granularity `head`.

        Args:
            graph: The graph, such as `Graph.of(model)`.
            heads: Names like `a3.h7`.

        Raises:
            ValueError: a name is not a head of the graph.
        """
        chosen, known = list(heads), graph.nodes_of_kind("head")
        names = {graph.sources[row] for row in known}
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is not a head of a graph with {graph.n_layers} layers of "
                f"{graph.n_heads} heads; heads are like {graph.sources[known[0]]}"
            )
        kept = torch.tensor([name in chosen or name not in names for name in graph.sources])
        edges = graph.connected(graph.mask & kept[:, None])
        nodes = edges.any(dim=1)
        nodes[0] = True
        return cls(graph, "head", nodes, edges, torch.zeros(edges.shape))

    @classmethod
    def from_edges(cls, graph: Graph, edges: Iterable[str]) -> Circuit:
        """Returns the circuit of these edges, as one of the granularity `edge`.

        Args:
            graph: The graph, such as `Graph.of(model)`.
            edges: Names like `input->a0.h0<q>`, `a0.h1->m0`, `m3->logits`.

        Raises:
            ValueError: a name is not an edge of the graph.
        """
        chosen = torch.zeros_like(graph.mask)
        for name in edges:
            chosen[graph.edge_index(name)] = True
        nodes = chosen.any(dim=1)
        nodes[0] = True
        return cls(graph, "edge", nodes, chosen, torch.zeros(chosen.shape))

    def __eq__(self, other: object) -> bool:
        """Whether both are the same components of the same graph, found in the same way."""
        if not isinstance(other, Circuit):
            return NotImplemented
        return (
            (self.graph, self.granularity, self.attention_edges, self.provenance)
            == (other.graph, other.granularity, other.attention_edges, other.provenance)
            and torch.equal(self.nodes, other.nodes)
            and torch.equal(self.edges, other.edges)
            and torch.equal(self.scores, other.scores)
        )

    __hash__ = None  # type: ignore[assignment]  # it holds tensors

    def __repr__(self) -> str:
        names = {"head": self.heads, "mlp": self.mlps, "edge": self.edge_names}
        shown = ", ".join(names.get(self.granularity, [])[:3])
        more = f": {shown}{', ...' if self.size > 3 else ''}" if shown else ""
        return f"Circuit({sized(self.size)} {self.granularity}s{more})"

    @property
    def heads(self) -> list[str]:
        """Names of the heads in the circuit."""
        return self._names("head")

    @property
    def mlps(self) -> list[str]:
        """Names of the MLPs in the circuit."""
        return self._names("mlp")

    def _names(self, kind: str) -> list[str]:
        return [
            name
            for row, name in enumerate(self.graph.sources)
            if self.nodes[row] and node_kind(name) == kind
        ]

    @property
    def edge_names(self) -> list[str]:
        """Names of the edges in the circuit, in the order of the graph."""
        return [self.graph.edge_name(src, dest) for src, dest in self.edges.nonzero().tolist()]

    @property
    def size(self) -> float:
        """How many components were chosen; attention edges are averaged over templates."""
        if self.granularity == "head":
            return len(self.heads)
        if self.granularity == "mlp":
            return len(self.mlps)
        if self.granularity == "edge":
            return int(self.edges.sum())
        return sum(map(len, self.attention_edges.values())) / len(self.attention_edges)

    def edges_by_kind(self) -> dict[str, int]:
        """Returns how many of the circuit's edges end in what kind of input.

        The kinds are a head's `q`, `k` and `v`, then `mlp` and `logits`.
        """
        counts: dict[str, int] = dict.fromkeys((*READS, "mlp", LOGITS), 0)
        per_destination = self.edges.sum(dim=0).tolist()
        for name, count in zip(self.graph.destinations, per_destination, strict=True):
            node, _, read = name.partition("<")
            counts[read.rstrip(">") or node_kind(node)] += count
        return counts

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row for each component, the greatest absolute score first.

        Heads and MLPs have the columns `component`, `layer` and `score` (the sum over their
        edges), edges `component`, `source`, `destination` and `score`, attention edges
        `template`, `layer`, `head`, `query`, `key` and `score`.
        """
        if self.granularity == "attention_edge":
            rows = [
                (template, edge.layer, edge.head, edge.query, edge.key, edge.score)
                for template, chosen in self.attention_edges.items()
                for edge in chosen
            ]
        elif self.granularity == "edge":
            rows = edge_rows(self.graph, self.edges, self.scores)
        else:
            totals = dict(zip(self.graph.sources, self.scores.sum(dim=1).tolist(), strict=True))
            rows = [
                (name, node_layer(name), totals[name]) for name in self._names(self.granularity)
            ]
        return score_table(self.granularity, rows)

    def _repr_html_(self) -> str:
        caption = (
            f"circuit of {self.granularity}s, size {sized(self.size)}; "
            f"{self.graph.n_layers} layers of {self.graph.n_heads} heads"
        )
        if "faithfulness" in self.provenance:
            caption += f"; faithfulness {self.provenance['faithfulness']:.3f}"
        return table_html(caption, self.to_dataframe())

    def to_networkx(self) -> nx.MultiDiGraph:
        """Returns the circuit as a networkx graph.

        Nodes carry `kind` and `layer`; edges are keyed by their name and carry `score` and
        `read` ("q", "k", "v" or "").
        """
        graph = nx.MultiDiGraph()
        for row, name in enumerate(self.graph.sources):
            if self.nodes[row]:
                graph.add_node(name, kind=node_kind(name), layer=node_layer(name))
        graph.add_node(LOGITS, kind=LOGITS, layer=self.graph.n_layers)
        for src, dest in self.edges.nonzero().tolist():
            node, _, read = self.graph.destinations[dest].partition("<")
            graph.add_edge(
                self.graph.sources[src],
                node,
                key=self.graph.edge_name(src, dest),
                score=float(self.scores[src, dest]),
                read=read.rstrip(">"),
            )
        return graph

    def to_json(self) -> dict[str, Any]:
        """Returns the circuit as EAP-IG writes it, with our own keys added."""
        graph = self.graph
        node_scores = self.scores.sum(dim=1).tolist()
        nodes: dict[str, dict[str, Any]] = {
            name: {"in_graph": bool(self.nodes[row]), "score": node_scores[row]}
            for row, name in enumerate(graph.sources)
        }
        nodes[LOGITS] = {"in_graph": True}
        return {
            "cfg": {
                "n_layers": graph.n_layers,
                "n_heads": graph.n_heads,
                "parallel_attn_mlp": graph.parallel_attn_mlp,
                "has_mlps": graph.has_mlps,
            }
            | ({} if graph.d_model is None else {"d_model": graph.d_model}),
            "nodes": nodes,
            "edges": {
                graph.edge_name(src, dest): {"score": score, "in_graph": is_in}
                for (src, dest), score, is_in in zip(
                    graph.mask.nonzero().tolist(),
                    self.scores[graph.mask].tolist(),
                    self.edges[graph.mask].tolist(),
                    strict=True,
                )
            },
            "granularity": self.granularity,
            "size": self.size,
            "attention_edges": {
                template: [[e.layer, e.head, e.query, e.key, e.score] for e in chosen]
                for template, chosen in self.attention_edges.items()
            },
            "found": self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """Writes the circuit as JSON, to a temporary file that is then renamed."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Returns the circuit in a file of ours, of EAP-IG or of MIB.

        Raises:
            ValueError: the file is not such JSON, or names nodes or edges that its architecture
                does not have.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a circuit ({type(error).__name__}: {error}); expected JSON with "
                "cfg, nodes and edges as EAP-IG writes it"
            ) from error

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Circuit:
        """Returns the circuit in the content of such a file.

        EAP-IG writes every node and edge. A file may leave out scores, and nodes: then those with
        an edge in the circuit are in.

        Raises:
            ValueError: nodes or edges that its architecture does not have, a score that is not a
                finite number, or an edge of a node that is not in the circuit.
        """
        cfg = content["cfg"]
        graph = Graph(
            cfg["n_layers"],
            cfg["n_heads"],
            cfg.get("has_mlps", True),
            cfg["parallel_attn_mlp"],
            cfg.get("d_model"),
        )
        edges, scores = torch.zeros_like(graph.mask), torch.zeros(graph.mask.shape)
        if listed := content["edges"]:
            places = tuple(torch.tensor([graph.edge_index(name) for name in listed]).T)
            edges[places] = torch.tensor([_flag(name, edge) for name, edge in listed.items()])
            scores[places] = torch.tensor(
                [_finite(name, edge.get("score", 0.0)) for name, edge in listed.items()]
            )
        granularity = content.get("granularity", "edge")
        nodes = edges.any(dim=1)
        if content["nodes"]:
            nodes = _listed_nodes(graph, content["nodes"])
        nodes[0] = True
        lonely = (edges & ~nodes[:, None]).nonzero().tolist()
        if lonely:
            name = graph.edge_name(*lonely[0])
            raise ValueError(
                f"edge {name} is in the circuit, but its node {graph.sources[lonely[0][0]]} is "
                "not; set in_graph of both, or of neither"
            )
        return cls(
            graph=graph,
            granularity=granularity,
            nodes=nodes,
            edges=edges,
            scores=scores,
            attention_edges={
                template: [AttentionEdge(*row) for row in chosen]
                for template, chosen in content.get("attention_edges", {}).items()
            },
            provenance=content.get("found", {}),
        )


def score_table(granularity: Granularity | str, rows: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """Returns components with their scores as a frame, the greatest absolute score first."""
    frame = pd.DataFrame(list(rows), columns=list(_COLUMNS[granularity]))
    return frame.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)


def edge_rows(
    graph: Graph, edges: Bool[Tensor, "src dest"], scores: Float[Tensor, "src dest"]
) -> list[tuple[str, str, str, float]]:
    """Returns name, source, destination and score of each of `edges`, for `score_table`."""
    return [
        (
            graph.edge_name(src, dest),
            graph.sources[src],
            graph.destinations[dest],
            float(scores[src, dest]),
        )
        for src, dest in edges.nonzero().tolist()
    ]


def _listed_nodes(graph: Graph, listed: dict[str, Any]) -> Bool[Tensor, " src"]:
    unknown = set(listed) - {*graph.sources, LOGITS}
    if unknown:
        raise ValueError(f"the graph lacks the nodes {sorted(unknown)[:3]} of the circuit")
    return torch.tensor([name in listed and _flag(name, listed[name]) for name in graph.sources])


def _flag(name: str, entry: dict[str, Any]) -> bool:
    flag = entry["in_graph"]
    if not isinstance(flag, bool):
        raise ValueError(f"in_graph of {name} is {flag!r}; it must be true or false")
    return flag


def _finite(name: str, score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"the score of {name} is {score!r}; it must be a finite number")
    return float(score)
