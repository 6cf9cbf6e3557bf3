"""What the MIB benchmark's circuit track reports of a ranking, and the file it is handed in as.

Source of the definitions: Mueller et al. 2025 (arXiv 2504.13151), section 3, and the benchmark's
code (github.com/hannamw/MIB-circuit-track, `evaluate_area_under_curve`).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.choices import MibLevel, MibTask, Selection
from circuits.files import write_json
from circuits.graph import LOGITS, Graph

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The sizes of the benchmark's circuits, as shares of all edges or nodes."""
MIB_MODELS = {
    "gpt2": "gpt2",
    "gpt2-small": "gpt2",
    "openai-community/gpt2": "gpt2",
    "Qwen/Qwen2.5-0.5B": "qwen2.5",
    "google/gemma-2-2b": "gemma2",
    "meta-llama/Llama-3.1-8B": "llama3",
}
"""The benchmark's models by their names on the hub, and what it calls them."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over prompts; NaN on both sides where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AtSize:
    """The circuit of one of the ten sizes.

    Attributes:
        share: The size, as a share of all components.
        chosen: How many components that is, rounded down.
        edges: How many edges are left once what is not connected is dropped.
        faithfulness: What the circuit recovers.
    """

    share: float
    chosen: int
    edges: int
    faithfulness: Estimate


@dataclass(frozen=True)
class MibCurve:
    """What the benchmark reports of one ranking on one set of prompts.

    Attributes:
        level: What the ranking chose among.
        selection: How scores put it in order.
        sizes: The ten circuits.
        cpr: Area under faithfulness over the share of components.
        cmd: Area between faithfulness and 1.
        average: Mean of the ten.
        cpr_log: Area under faithfulness over the logarithm of the share.
        cmd_log: Area between faithfulness and 1 over the logarithm of the share.
        n_prompts: How many prompts they were measured on.
        interval: What was drawn for the intervals, or why there is none.
    """

    level: MibLevel | str
    selection: Selection | str
    sizes: tuple[AtSize, ...]
    cpr: Estimate
    cmd: Estimate
    average: float
    cpr_log: float
    cmd_log: float
    n_prompts: int
    interval: str

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each size, with `faithfulness`, its `_low` and `_high`."""
        rows = [
            {"level": self.level, "selection": self.selection}
            | {"share": size.share, "chosen": size.chosen, "edges": size.edges}
            | _columns("faithfulness", size.faithfulness)
            for size in self.sizes
        ]
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """Returns what is one number of the whole ranking, as a row of a table."""
        return (
            {"level": self.level, "selection": self.selection}
            | _columns("cpr", self.cpr)
            | _columns("cmd", self.cmd)
            | {"average": self.average, "cpr_log": self.cpr_log, "cmd_log": self.cmd_log}
            | {"prompts": self.n_prompts, "interval": self.interval}
        )


def areas(
    faithfulness: Float[Tensor, "*batch size"], *, log_scale: bool = False
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Returns CPR and CMD of the faithfulness at the ten sizes.

    Trapezoids between the ten points, of F and of |1 - F|, from the smallest size to the whole
    model: nothing stands for sizes under 0.001, so a curve of ones has a CPR of 0.999. With
    `log_scale`, the same over the natural logarithm of the share.

    Raises:
        ValueError: there are not ten sizes.
    """
    if faithfulness.shape[-1] != len(MIB_SIZES):
        raise ValueError(
            f"faithfulness at {faithfulness.shape[-1]} sizes; give it at the benchmark's "
            f"{len(MIB_SIZES)}"
        )
    shares = torch.tensor(MIB_SIZES, dtype=faithfulness.dtype)
    shares = shares.log() if log_scale else shares
    return (
        torch.trapezoid(faithfulness, shares, dim=-1),
        torch.trapezoid((1 - faithfulness).abs(), shares, dim=-1),
    )


def why_not_handed_in(graph: Graph) -> str | None:
    """Returns why the benchmark cannot read rankings of a graph; None where it can."""
    if not graph.has_mlps:
        return "the benchmark's graphs have an MLP in every layer, this model has none"
    if graph.d_model is None:
        return "the benchmark's files hold d_model, which this graph does not know"
    return None


def submission(
    graph: Graph, edges: Float[Tensor, "src dest"], nodes: Float[Tensor, " src"] | None = None
) -> dict[str, Any]:
    """Returns a ranking as the benchmark's JSON: importances of all edges, or of all nodes.

    The evaluation chooses by the scores: of the edges, or (`--level node`) of the nodes, where the
    edges' own are not looked at. `in_graph` is for circuits that were chosen before, and false.

    Args:
        graph: The graph of the model.
        edges: Signed scores of the edges.
        nodes: Signed scores of the sources, for a ranking of nodes.

    Raises:
        ValueError: the benchmark cannot read rankings of such a graph, or a score is not finite.
    """
    if (why := why_not_handed_in(graph)) is not None:
        raise ValueError(f"{why}; there is nothing to hand in")
    for scores in (edges, *([] if nodes is None else [nodes])):
        if not torch.isfinite(scores).all():
            raise ValueError("a score is NaN or infinite, which the benchmark cannot rank")
    return {
        "cfg": {
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "parallel_attn_mlp": graph.parallel_attn_mlp,
            "d_model": graph.d_model,
        },
        "nodes": {
            name: {"in_graph": False} | ({} if nodes is None else {"score": float(nodes[row])})
            for row, name in enumerate(graph.sources)
        }
        | {LOGITS: {"in_graph": True}},
        "edges": {
            graph.edge_name(src, dest): {"score": float(edges[src, dest]), "in_graph": False}
            for src, dest in graph.mask.nonzero().tolist()
        },
    }


def write_submission(folder: Path, task: MibTask | str, model: str, content: dict) -> Path:
    """Writes a ranking where the benchmark looks for it: `<task>_<model>/importances.json`.

    Underscores of the task are hyphens there; the model has the benchmark's own name for it, or
    what is left of its name without folders and underscores. Returns the file.
    """
    known = MIB_MODELS.get(model) or re.sub(r"[^\w.-]|_", "-", Path(model).name)
    path = folder / f"{task.replace('_', '-')}_{known}" / "importances.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return path


def n_at(share: float, n_components: int) -> int:
    """Returns how many components a size is, as the benchmark rounds it: down."""
    return math.floor(share * n_components)


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    parts = asdict(estimate)
    return {name: parts["value"], f"{name}_low": parts["low"], f"{name}_high": parts["high"]}
