"""How good a given circuit is: faithful, complete and minimal, by real interventions.

For any circuit of nodes or edges, found here or loaded from a file of another tool. The three
questions are those of Wang et al. 2022 (arXiv 2211.00593), section 4.
"""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Bool
from rich.progress import track
from torch import Tensor

from circuits.discovery.rank import rest_of
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import Experiment, check_does_task, faithfulness
from circuits.results.circuit import Circuit
from circuits.results.exchange import check_fits


def faithfulness_of(experiment: Experiment, circuit: Circuit) -> float:
    """Returns F(C): 1 where the circuit does as much as the whole model, 0 where nothing.

    Raises:
        ValueError: the circuit is of another graph or of attention edges, or the model does not
            do the task.
    """
    _check(experiment, circuit)
    return _faithfulness(experiment, circuit.edges)


def completeness_of(experiment: Experiment, circuit: Circuit) -> float:
    """Returns F of all components outside the circuit: near 0 if it leaves nothing out.

    Of a circuit of heads, the other heads are run with all MLPs, and the reverse: what `discover`
    reports as the rest.

    Raises:
        ValueError: as for `faithfulness_of`.
    """
    _check(experiment, circuit)
    return _faithfulness(experiment, rest_of(circuit))


def minimality_of(experiment: Experiment, circuit: Circuit) -> pd.DataFrame:
    """Returns for each component of the circuit how far F falls when the circuit lacks it.

    Components are edges, heads or MLPs, by the circuit's granularity. It takes a forward pass
    for each. The columns are `component`, `fall` (of F) and `score`, the smallest fall first.

    Raises:
        ValueError: as for `faithfulness_of`.
    """
    _check(experiment, circuit)
    graph, whole = experiment.graph, _faithfulness(experiment, circuit.edges)
    rows = []
    if circuit.granularity == "edge":
        places = circuit.edges.nonzero().tolist()
        parts = [(graph.edge_name(*place), tuple(place)) for place in places]
    else:
        names = circuit.heads if circuit.granularity == "head" else circuit.mlps
        parts = [(name, (graph.sources.index(name),)) for name in names]
    for name, place in track(parts, description="minimality", transient=True):
        kept = circuit.edges.clone()
        kept[place] = False
        score = float(circuit.scores[place].sum())
        fall = whole - _faithfulness(experiment, kept)
        rows.append({"component": name, "fall": fall, "score": score})
    frame = pd.DataFrame(rows, columns=["component", "fall", "score"])
    return frame.sort_values("fall", ignore_index=True)


def _faithfulness(experiment: Experiment, edges: Bool[Tensor, "src dest"]) -> float:
    values = run_edges(experiment, edges)
    return float(faithfulness(values, experiment.full, experiment.empty))


def _check(experiment: Experiment, circuit: Circuit) -> None:
    check_fits(circuit, experiment.graph)
    if circuit.granularity == "attention_edge":
        raise ValueError(
            "attention edges are not edges of the graph; give a circuit of heads, MLPs or edges"
        )
    if not torch.isfinite(circuit.scores).all():
        raise ValueError("the circuit has scores that are not finite")
    check_does_task(experiment)
