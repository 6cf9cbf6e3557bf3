"""The computational graph of a transformer: what writes to the residual stream and what reads it.

Sources write: the `input` (token and position embedding), each head `a{layer}.h{head}` and each
MLP `m{layer}`. Destinations read: the query, key and value input of each head (`a0.h1<q>`, `<k>`,
`<v>`), each MLP and the `logits`. Since the residual stream is a sum, every source reaches every
later destination directly; each such pair is an edge, `a0.h1->a3.h2<q>`.

All matrices over edges are `[src, dest]`: rows are sources, columns destinations, both in the
order in which the model computes them. A graph knows shapes and names; it knows no model, no
tensor of activations and no score. Names are those of EAP-IG and of the MIB benchmark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

INPUT, LOGITS = "input", "logits"
READS = ("q", "k", "v")
NodeKind = Literal["input", "head", "mlp", "logits"]
_NODE = re.compile(r"a(?P<layer>\d+)\.h(?P<head>\d+)(?:<(?P<read>[qkv])>)?|m(?P<mlp>\d+)")


@dataclass(frozen=True)
class Graph:
    """The graph of all edges of one architecture.

    Attributes:
        n_layers: Number of blocks.
        n_heads: Number of query heads in each block.
        has_mlps: Whether blocks have an MLP.
        parallel_attn_mlp: Whether a block's MLP reads the block's input instead of what its own
            heads have added (GPT-J, Pythia).
        d_model: Width of the residual stream, where known. It changes nothing about the graph,
            but the files of other tools hold it.
    """

    n_layers: int
    n_heads: int
    has_mlps: bool = True
    parallel_attn_mlp: bool = False
    d_model: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.n_layers < 1 or self.n_heads < 1:
            raise ValueError(
                f"a graph needs at least one layer and one head, got n_layers={self.n_layers}, "
                f"n_heads={self.n_heads}"
            )

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes that write, in order of computation."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names += [f"m{layer}"] if self.has_mlps else []
        return tuple(names)

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names of what reads: all q of a layer, all k, all v, then its MLP; last the logits."""
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<{read}>" for read in READS for head in range(self.n_heads)]
            names += [f"m{layer}"] if self.has_mlps else []
        return (*names, LOGITS)

    @property
    def n_sources(self) -> int:
        """Number of rows of an edge matrix."""
        return 1 + self.n_layers * (self.n_heads + self.has_mlps)

    @property
    def n_destinations(self) -> int:
        """Number of columns of an edge matrix."""
        return 1 + self.n_layers * (3 * self.n_heads + self.has_mlps)

    @property
    def n_edges(self) -> int:
        """Number of edges of the whole graph (32,491 for GPT-2 small)."""
        return int(self.mask.sum())

    def head_sources(self, layer: int) -> slice:
        """Returns the rows of a layer's heads."""
        first = 1 + layer * (self.n_heads + self.has_mlps)
        return slice(first, first + self.n_heads)

    def mlp_source(self, layer: int) -> int:
        """Returns the row of a layer's MLP."""
        return self.head_sources(layer).stop

    def read_destinations(self, layer: int, read: str) -> slice:
        """Returns the columns of a layer's query, key or value inputs."""
        first = layer * (3 * self.n_heads + self.has_mlps) + READS.index(read) * self.n_heads
        return slice(first, first + self.n_heads)

    def head_destinations(self, layer: int) -> slice:
        """Returns the columns of all inputs of a layer's heads: queries, then keys, then values."""
        return slice(
            self.read_destinations(layer, "q").start, self.read_destinations(layer, "v").stop
        )

    def mlp_destination(self, layer: int) -> int:
        """Returns the column of a layer's MLP."""
        return self.read_destinations(layer, "v").stop

    def n_upstream_of_heads(self, layer: int) -> int:
        """Returns how many sources, counted from the first, a layer's heads read."""
        return self.head_sources(layer).start

    def n_upstream_of_mlp(self, layer: int) -> int:
        """Returns how many sources, counted from the first, a layer's MLP reads."""
        heads = self.head_sources(layer)
        return heads.start if self.parallel_attn_mlp else heads.stop

    @cached_property
    def mask(self) -> Bool[Tensor, "src dest"]:
        """True where there is an edge."""
        mask = torch.zeros(self.n_sources, self.n_destinations, dtype=torch.bool)
        for layer in range(self.n_layers):
            for read in READS:
                mask[: self.n_upstream_of_heads(layer), self.read_destinations(layer, read)] = True
            if self.has_mlps:
                mask[: self.n_upstream_of_mlp(layer), self.mlp_destination(layer)] = True
        mask[:, -1] = True
        return mask

    @cached_property
    def node_destinations(self) -> dict[str, list[int]]:
        """The columns that belong to each node: three for a head, one for an MLP or the logits."""
        columns: dict[str, list[int]] = {}
        for column, name in enumerate(self.destinations):
            columns.setdefault(name.split("<")[0], []).append(column)
        return columns

    def nodes_of_kind(self, kind: NodeKind) -> list[int]:
        """Returns the rows of all sources of one kind."""
        return [row for row, name in enumerate(self.sources) if node_kind(name) == kind]

    def edge_name(self, src: int, dest: int) -> str:
        """Returns the name of the edge at `[src, dest]`."""
        return f"{self.sources[src]}->{self.destinations[dest]}"

    def edge_index(self, name: str) -> tuple[int, int]:
        """Returns `(src, dest)` of an edge's name.

        Raises:
            ValueError: not an edge's name, an unknown node, or a pair that has no edge.
        """
        src, arrow, dest = name.partition("->")
        if not arrow:
            raise ValueError(f"{name!r} is not an edge; an edge is written like 'a0.h1->a3.h2<q>'")
        row = self._rows.get(src)
        column = self._columns.get(dest)
        if row is None or column is None:
            kind, unknown = ("source", src) if row is None else ("destination", dest)
            raise ValueError(
                f"edge {name!r}: {unknown!r} is not a {kind} of a graph with {self.n_layers} "
                f"layers of {self.n_heads} heads; sources are like {', '.join(self.sources[:3])}, "
                f"destinations like {self.destinations[0]}, {self.destinations[-1]}"
            )
        if not self._is_edge[row][column]:
            raise ValueError(
                f"edge {name!r} does not run forwards; an edge must go to a later layer"
                + ("" if self.parallel_attn_mlp else " or to the MLP of its own")
            )
        return row, column

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.sources)}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.destinations)}

    @cached_property
    def _is_edge(self) -> list[list[bool]]:
        # Looking up one element of a tensor takes as long as a hundred of these.
        return self.mask.tolist()

    def connected(self, edges: Bool[Tensor, "src dest"]) -> Bool[Tensor, "src dest"]:
        """Returns those of `edges` that lie on a path from `input` to `logits` inside `edges`.

        The others change nothing: what no clean input reaches writes its ablated value, and what
        does not reach the logits is not read.
        """
        edges = edges & self.mask
        reached = torch.zeros(self.n_sources, dtype=torch.bool)
        reached[0] = True
        for row, name in enumerate(self.sources[1:], start=1):
            columns = self.node_destinations[name]
            reached[row] = bool((edges[:, columns] & reached[:, None]).any())
        useful = torch.zeros(self.n_destinations, dtype=torch.bool)
        useful[-1] = True
        for row in range(self.n_sources - 1, 0, -1):
            if (edges[row] & useful).any():
                useful[self.node_destinations[self.sources[row]]] = True
        return edges & reached[:, None] & useful[None, :]


def node_kind(name: str) -> NodeKind:
    """Returns what kind of node a node's or destination's name stands for.

    Raises:
        ValueError: the name is none.
    """
    if name in (INPUT, LOGITS):
        return name
    match = _NODE.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is not a node; nodes are 'input', 'logits', heads like 'a3.h7' and "
            "MLPs like 'm3'"
        )
    return "mlp" if match["mlp"] is not None else "head"


def node_layer(name: str) -> int:
    """Returns a node's layer: -1 for the input; the logits have none and are refused."""
    if name == INPUT:
        return -1
    match = _NODE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} has no layer")
    return int(match["mlp"] if match["mlp"] is not None else match["layer"])


def head_of(name: str) -> tuple[int, int]:
    """Returns the layer and the number of a head's name, `a3.h7`.

    Raises:
        ValueError: the name is no head's.
    """
    match = _NODE.fullmatch(name)
    if match is None or match["head"] is None or match["read"] is not None:
        raise ValueError(f"{name!r} is no head; a head is written like 'a3.h7' (layer 3, head 7)")
    return int(match["layer"]), int(match["head"])
