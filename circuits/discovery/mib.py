"""A ranking at the ten sizes of the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151).

The benchmark takes the first so many components of a ranking, drops what is not connected, and
does not search: that is `circuits.discovery.find_circuits`. Source of the rules: its code and that
of EAP-IG, whose graphs it uses (`Graph.apply_topn`, `apply_greedy`, `prune`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.attribute import Scores
from circuits.choices import MIB_LEVELS, SELECTIONS, MibLevel, Selection, check_choice
from circuits.discovery.agreement import auroc
from circuits.discovery.rank import Ranking, by_strength, rank_components, select_edges
from circuits.discovery.resample import resample_prompts, resampled_faithfulness
from circuits.graph import Graph
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import Experiment, check_does_task, faithfulness
from circuits.results.circuit import Circuit
from circuits.results.exchange import check_fits
from circuits.results.intervals import interval
from circuits.results.mib import MIB_SIZES, AtSize, Estimate, MibCurve, areas, n_at


def mib_ranking(
    scores: Scores, level: MibLevel | str, selection: Selection | str = "absolute"
) -> Ranking:
    """Returns all edges (as flat indices) or all sources (as rows), strongest first.

    Nodes are in one ranking: the input, heads and MLPs compete.

    Raises:
        ValueError: an unknown level or selection, or nodes by `greedy`, which is of edges.
    """
    check_ranking(level, selection)
    if level == "edge":
        return rank_components(scores, "edge", selection)
    return by_strength(scores.nodes, selection)


def check_ranking(level: MibLevel | str, selection: Selection | str) -> None:
    """Refuses what no ranking goes by; call it before any long work.

    Raises:
        ValueError: an unknown level or selection, or nodes by `greedy`, which is of edges.
    """
    check_choice("level", level, MIB_LEVELS)
    check_choice("selection", selection, SELECTIONS)
    if level == "node" and selection == "greedy":
        raise ValueError("nodes have no greedy order; choose absolute or signed for them")


def mib_circuit(scores: Scores, level: MibLevel | str, chosen: Ranking) -> Bool[Tensor, "src dest"]:
    """Returns the edges of the circuit of the chosen edges, or nodes, as the benchmark builds it.

    A chosen node has all of its edges. Whatever lies on no path from the input to the logits goes
    then, edges to nodes that were not chosen among it; this changes nothing about what the circuit
    does.
    """
    graph = scores.graph
    if level == "edge":
        return graph.connected(select_edges(graph, "edge", chosen))
    rows = torch.zeros(graph.n_sources, dtype=torch.bool)
    rows[chosen] = True
    return graph.connected(graph.mask & rows[:, None])


def measure_mib(
    experiment: Experiment,
    scores: Scores,
    *,
    level: MibLevel | str = "edge",
    selection: Selection | str = "absolute",
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _what: None,
) -> MibCurve:
    """Returns faithfulness at the ten sizes, CPR and CMD, by real interventions.

    Args:
        experiment: The model with the prompts to measure on; not those that were scored on.
        scores: The scores that rank.
        level: What is chosen: edges or nodes.
        selection: How scores order them: `absolute`, `signed`, or `greedy` for edges.
        seed: Of the resamples of prompts.
        on_step: Called with a few words after each size.

    Raises:
        ValueError: as for `mib_ranking`; the scores are of another graph or are not finite; or the
            model does not do the task.
    """
    graph = experiment.graph
    if scores.graph != graph:
        raise ValueError(f"the scores are of {scores.graph}, the model has {graph}")
    ranking = mib_ranking(scores.check_finite(), level, selection)
    check_does_task(experiment)
    sizes = [n_at(share, len(ranking)) for share in MIB_SIZES]
    circuits = [mib_circuit(scores, level, ranking[:size]) for size in sizes]
    values: list[Tensor] = []
    for number, edges in enumerate(circuits):
        same = [i for i in range(number) if torch.equal(circuits[i], edges)]
        if same:
            values.append(values[same[0]])
        elif not edges.any():
            values.append(experiment.empty)
        else:
            # Nodes with all of their edges do what they do with those among them, and run faster.
            kept = edges if level == "edge" else graph.mask & edges.any(dim=1, keepdim=True)
            values.append(run_edges(experiment, kept))
        on_step(f"{selection}: size {number + 1} of {len(sizes)}")
    measured = torch.stack(values).cpu().double()
    full, empty = experiment.full.cpu().double(), experiment.empty.cpu().double()
    curve = faithfulness(measured, full, empty)
    again = resample_prompts(experiment.prompts.templates, seed=seed)
    resampled = resampled_faithfulness(measured, full, empty, again.weights)
    cpr, cmd = (
        Estimate(float(value), *interval(samples))
        for value, samples in zip(areas(curve), areas(resampled), strict=True)
    )
    cpr_log, cmd_log = (float(area) for area in areas(curve, log_scale=True))
    return MibCurve(
        level=level,
        selection=selection,
        sizes=tuple(
            AtSize(share, size, int(edges.sum()), Estimate(float(value), *interval(samples)))
            for share, size, edges, value, samples in zip(
                MIB_SIZES, sizes, circuits, curve, resampled.T, strict=True
            )
        ),
        cpr=cpr,
        cmd=cmd,
        average=float(curve.mean()),
        cpr_log=cpr_log,
        cmd_log=cmd_log,
        n_prompts=len(experiment.prompts),
        interval=again.drawn,
    )


@dataclass(frozen=True)
class KnownCircuit:
    """How a ranking finds a circuit that is known.

    Attributes:
        auroc: Area under the ROC curve over all thresholds of the absolute score, ties one half.
        auroc_of_sizes: The benchmark's own, of edges: trapezoids between the ten sizes, with edges
            chosen greedily; NaN of nodes.
        false_positives: The share of the other edges that is in each of these ten circuits.
        true_positives: The share of the known edges.
    """

    auroc: float
    auroc_of_sizes: float
    false_positives: tuple[float, ...] = ()
    true_positives: tuple[float, ...] = ()


def find_known(scores: Scores, known: Circuit, level: MibLevel | str = "edge") -> KnownCircuit:
    """Returns how a ranking agrees with a known circuit, such as one of InterpBench's.

    The benchmark grows circuits greedily from the logits to its ten sizes, here rounded up, drops
    what is not connected, and integrates the true over the false positives, from the first point
    on: a ranking that is perfect at its smallest size has 1 less what lies before that point. Nodes
    are heads and MLPs; the input is in every circuit.

    Raises:
        ValueError: the circuit is of another graph, or all or none of it is known.
    """
    graph = scores.graph
    check_known(known, graph, level)
    if level == "node":
        return KnownCircuit(auroc(scores.nodes[1:], known.nodes[1:]), math.nan)
    exact = auroc(scores.edges[graph.mask], known.edges[graph.mask])
    order = rank_components(scores, "edge", "greedy")
    false, true = [], []
    for share in MIB_SIZES:
        size = math.ceil(share * len(order))
        edges = graph.connected(select_edges(graph, "edge", order[:size]))
        true.append(int((edges & known.edges).sum()) / int(known.edges.sum()))
        false.append(int((edges & ~known.edges).sum()) / int((graph.mask & ~known.edges).sum()))
    area = torch.trapezoid(torch.tensor(true).double(), torch.tensor(false).double())
    return KnownCircuit(exact, float(area), tuple(false), tuple(true))


def check_known(known: Circuit, graph: Graph, level: MibLevel | str) -> None:
    """Refuses a circuit that no ranking can be judged by; call it before any long work.

    Raises:
        ValueError: an unknown level, a circuit of another graph, or all or none of it is known.
    """
    check_choice("level", level, MIB_LEVELS)
    check_fits(known, graph)
    inside = known.nodes[1:] if level == "node" else known.edges[graph.mask]
    if inside.all() or not inside.any():
        raise ValueError(
            f"{int(inside.sum())} of {len(inside)} {level}s are in the known circuit; a ranking is "
            "judged by some that are and some that are not"
        )
