"""What attribution returns: one signed number per component."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pandas import DataFrame
from torch import Tensor

from circuits.choices import GRANULARITIES, Ablation, Granularity, check_choice
from circuits.graph import Graph, node_layer
from circuits.results.circuit import edge_rows, score_table
from circuits.results.notebook import table_html


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Signed attribution of every component; positive supports the behaviour.

    A score estimates how much the metric falls, on the mean over prompts and in the metric's
    units, when that component alone is ablated.

    Attributes:
        graph: The graph that the scores are of.
        edges: Score of each edge, zero where there is none.
        attention_edges: Score of each attention edge (layer, head, query, key) for each
            template, as wide as its own prompts are long.
        method: The name of the method in `circuits.attribute.METHODS`.
        ablation: What the ablated component would have written.
        n_prompts: How many prompts the scores are means over.
        node_scores: Score of each source, for a method that measures it on its own.
    """

    graph: Graph
    edges: Float[Tensor, "src dest"]
    attention_edges: dict[str, Float[Tensor, "layer head query_pos key_pos"]]
    method: str
    ablation: Ablation | str
    n_prompts: int
    node_scores: Float[Tensor, " src"] | None = None

    @property
    def nodes(self) -> Float[Tensor, " src"]:
        """Score of each source.

        dm/dz_u is the sum of the gradients at everything that reads u, so a node's attribution is
        exactly the sum of its edges', unless the method measures nodes by themselves.
        """
        return self.edges.sum(dim=1) if self.node_scores is None else self.node_scores

    def to_dataframe(self, granularity: Granularity | str = "edge") -> DataFrame:
        """Returns one row for each component, the greatest absolute score first.

        Heads and MLPs have the columns `component`, `layer` and `score`, edges `component`,
        `source`, `destination` and `score`, attention edges `template`, `layer`, `head`, `query`,
        `key` and `score`.

        Raises:
            ValueError: an unknown granularity.
        """
        check_choice("granularity", granularity, GRANULARITIES)
        graph = self.graph
        if granularity == "attention_edge":
            rows = [
                (template, *place, float(scores[tuple(place)]))
                for template, scores in self.attention_edges.items()
                for place in torch.ones(scores.shape).tril().nonzero().tolist()
            ]
        elif granularity == "edge":
            rows = edge_rows(graph, graph.mask, self.edges)
        else:
            names = graph.sources
            rows = [
                (names[row], node_layer(names[row]), float(self.nodes[row]))
                for row in graph.nodes_of_kind("head" if granularity == "head" else "mlp")
            ]
        return score_table(granularity, rows)

    def __repr__(self) -> str:
        return (
            f"Scores({self.method}: {self.graph.n_edges} edges, {len(self.attention_edges)} "
            f"templates, {self.n_prompts} prompts)"
        )

    def _repr_html_(self) -> str:
        caption = f"scores of edges by {self.method}, mean over {self.n_prompts} prompts"
        return table_html(caption, self.to_dataframe())

    def check_finite(self) -> Scores:
        """Returns the scores.

        Raises:
            ValueError: a score is NaN or infinite; the message names the component.
        """
        graph = self.graph
        kinds: list[tuple[str, Tensor, Callable[..., str]]] = [
            ("edges", self.edges, graph.edge_name)
        ]
        if self.node_scores is not None:
            kinds.append(("nodes", self.node_scores, lambda src: graph.sources[src]))
        for template, scores in self.attention_edges.items():

            def in_words(layer: int, head: int, query: int, key: int, name: str = template) -> str:
                return (
                    f"the attention edge of a{layer}.h{head} from position {query} to {key} "
                    f"(template {name!r})"
                )

            kinds.append(("attention edges", scores, in_words))
        for kind, scores, name_of in kinds:
            bad = (~torch.isfinite(scores)).nonzero().tolist()
            if bad:
                raise ValueError(
                    f"the score of {name_of(*bad[0])} is {scores[tuple(bad[0])].item()} "
                    f"({len(bad)} {kind} are not finite); look for NaN or infinity in the model's "
                    "weights, or load it in float32"
                )
        return self
