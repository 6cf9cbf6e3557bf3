"""A hand-made comparison of two imaginary models, for the tests of figures and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from circuits.graph import Graph
from circuits.results.circuit import AttentionEdge, Circuit
from circuits.results.comparison import ONLY, AttentionExample, Comparison, ModelFacts
from circuits.results.discovery import DiscoverConfig, Discovery, Evidence
from circuits.results.roles import HeadRole
from circuits.results.stability import Stability

GRAPH = Graph(2, 2)
TOKENS = ("<|endoftext|>", " When", " <script>alert(1)</script>", ' "quoted"', "\n")
EDGES = {
    "dense": {
        "input->a0.h0<v>": 1.0,
        "a0.h0->a1.h0<q>": 0.5,
        "input->a1.h0<k>": -0.25,
        "a0.h0->m0": 0.75,
        "m0->a1.h0<v>": 0.1,
        "a1.h0->logits": 2.0,
    },
    "sparse": {"input->a0.h1<v>": 1.0, "a0.h1->a1.h0<v>": 1.5, "a1.h0->logits": 2.0},
}


def make_circuit(scores: dict[str, float], granularity: str = "edge", graph: Graph = GRAPH):
    """Returns the circuit of the edges named in `scores`."""
    edges, values = torch.zeros_like(graph.mask), torch.zeros(graph.mask.shape)
    for name, score in scores.items():
        src, dest = graph.edge_index(name)
        edges[src, dest], values[src, dest] = True, score
    nodes = edges.any(dim=1)
    attention = {"template": [AttentionEdge(1, 0, 4, 2, 0.5)]}
    return Circuit(
        graph=graph,
        granularity=granularity,  # type: ignore[arg-type]
        nodes=nodes,
        edges=edges,
        scores=values,
        attention_edges=attention if granularity == "attention_edge" else {},
    )


def without_last(circuit: Circuit) -> Circuit:
    """Returns the circuit without its last edge and without nodes that are then without any."""
    edges = circuit.edges.clone()
    edges[edges.nonzero()[-1:].unbind(dim=1)] = False
    return replace(circuit, edges=edges, nodes=edges.any(dim=1))


def make_found(circuit: Circuit, redrawn: Sequence[float] | None = None) -> Evidence:
    """Returns evidence for a circuit whose faithfulness rises in three steps."""
    size = float(circuit.size)
    redrawn = tuple(redrawn or (max(1.0, size - 1), size, size, size + 2))
    low, high = min(redrawn), max(redrawn)
    return Evidence(
        circuit=circuit,
        size=size,
        n_components=40.0,
        interval="halves of ranking and sizing prompts",
        prefix_size=size,
        prefix_low=low,
        prefix_high=high,
        is_minimal=None,
        faithfulness=0.92,
        faithfulness_low=0.85,
        faithfulness_high=0.97,
        faithfulness_interval="prompts within templates",
        faithfulness_sizing=0.94,
        measured_on="reporting",
        n_measured=20,
        faithfulness_without_last=0.8,
        faithfulness_of_rest=0.1,
        size_low=low,
        size_high=high,
        redrawn_sizes=redrawn,
        redrawn_prefixes=redrawn,
        stability=Stability.of([circuit, circuit, circuit, without_last(circuit)]),
        resampled_templates=redrawn,
        template_sizes={"template": size},
        n_attribution=size + 3,
        random_faithfulness=(0.0, 0.1, -0.1),
        curve_sizes=(0.0, size, 40.0),
        curve_faithfulness=(0.0, 0.92, 1.0),
        curve_low=(0.0, 0.85, 1.0),
        curve_high=(0.0, 0.97, 1.0),
        cpr=0.95,
        cmd=0.05,
    )


def make_comparison(
    *,
    tasks: Sequence[str] = ("ioi", "greater_than"),
    granularities: Sequence[str] = ("head", "mlp", "edge", "attention_edge"),
) -> Comparison:
    """Returns a comparison whose dense circuit has 6 edges and whose sparse one has 3."""
    discoveries = {
        task: {
            side: Discovery(
                task=task,
                metric="logit_diff",
                metric_full=4.0,
                metric_empty=-1.0,
                accuracy=0.99,
                n_reporting=20,
                config=DiscoverConfig(granularities=tuple(granularities)),  # type: ignore[arg-type]
                circuits={
                    name: make_found(make_circuit(scores, name))  # type: ignore[misc]
                    for name in granularities
                },
            )
            for side, scores in EDGES.items()
        }
        for task in tasks
    }
    n_pos = len(TOKENS)
    pattern = torch.ones(n_pos, n_pos).tril()
    pattern = (pattern / pattern.sum(dim=1, keepdim=True)).tolist()
    closed = torch.eye(n_pos).tolist()
    return Comparison(
        models={
            "dense": ModelFacts(
                "dense & <b>bold</b>", 1.2, 1.0, (1.0, 1.0), ((1.0, 1.0),) * 2, 128, 1000
            ),
            "sparse": ModelFacts(
                "sparse", 1.205, 0.006, (0.012, 0.0), ((0.02, 0.004), (0, 0)), 128, 1000
            ),
        },
        discoveries=discoveries,
        examples={
            task: tuple(
                AttentionExample(
                    task=task,
                    template="template",
                    clean=(*TOKENS[:3], third, *TOKENS[4:]),
                    corrupted=TOKENS,
                    answer=" <i>Mary</i>",
                    patterns={"dense": [[pattern] * 2] * 2, "sparse": [[closed] * 2] * 2},
                )
                for third in (TOKENS[3], " second")
            )
            for task in tasks
        },
        run={
            "versions": {"torch": "2.13.0"},
            "seed": 0,
            "device": "cpu",
            "seconds": 1.5,
            "command": "circuits compare --out '<script>alert(2)</script>'",
        },
    )


def pruned(comparison: Comparison, size_of: Callable[[float], float]) -> Comparison:
    """Returns the comparison as if each circuit had been pruned from its size to `size_of` it."""

    def shrunk(one: Evidence) -> Evidence:
        return replace(
            one,
            size=size_of(one.size),
            size_low=size_of(one.size_low),
            size_high=size_of(one.size_high),
            is_minimal=True,
            redrawn_sizes=tuple(map(size_of, one.redrawn_sizes)),
            resampled_templates=(),
        )

    return replace(
        comparison,
        discoveries={
            task: {
                side: replace(
                    discovery,
                    config=replace(discovery.config, prune=True),
                    circuits={name: shrunk(one) for name, one in discovery.circuits.items()},
                )
                for side, discovery in sides.items()
            }
            for task, sides in comparison.discoveries.items()
        },
    )


def make_study(**options: Sequence[str]) -> Comparison:
    """Returns a study of one model: the dense one of `make_comparison`, with the roles of heads."""
    pair = make_comparison(**options)
    return Comparison(
        models={ONLY: pair.models["dense"]},
        discoveries={task: {ONLY: found["dense"]} for task, found in pair.discoveries.items()},
        examples={
            task: tuple(replace(one, patterns={ONLY: one.patterns["dense"]}) for one in several)
            for task, several in pair.examples.items()
        },
        roles=tuple(
            HeadRole(
                task=task,
                model=ONLY,
                head=head,
                in_circuit=head != "a0.h1",
                previous_token=0.1,
                duplicate_token=0.1,
                induction=0.6 if role == "induction" else 0.1,
                to_answer=0.7 if role == "name_mover" else 0.1,
                to_changed=0.2,
                direct=2.5,
                role=role,
                twin="",
                similarity=None,
            )
            for task in pair.discoveries
            for head, role in {"a0.h0": "induction", "a0.h1": "", "a1.h0": "name_mover"}.items()
        ),
        run=pair.run | {"command": "circuits discover --out '<script>alert(2)</script>'"},
    )
