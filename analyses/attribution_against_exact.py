"""How well each attribution method predicts exact patching on the embedded models.

    python analyses/attribution_against_exact.py --out docs/attribution

Every node, edge and attention edge is ablated by itself, and the fall of the metric is compared
with its score by each method; in the gated model for both ways of differentiating the gate.
Reported are the rank correlation (Spearman) over the components that matter most by exact
patching, how many edges the method's ranking needs for 90 % of the behaviour on other prompts,
and how long scoring takes against attribution patching. Writes `DIR/against_exact.csv`; what was
measured exactly is kept in `DIR` until it is whole, so an interrupted call goes on.

`--methods`, `--gradients`, `--prompts` and `--sizing` choose some methods, ways of differentiating
the gate, and numbers of prompts for ranking and for circuits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from rich.progress import Progress

from circuits.attribute import METHODS, Scores
from circuits.attribute.exact_patching import exact_patching
from circuits.discovery.ranked import RankedComponents, search_ranked
from circuits.files import write_text
from circuits.gate.gate import gate_gradient, is_gated
from circuits.intervene.experiment import Experiment, prepare_experiment
from circuits.models.load import load_model
from circuits.tasks import get_task

N_STRONGEST = 200
TARGET = 0.9
GRADIENTS = ("straight_through", "frozen")


def values_of(scores: Scores, granularity: str) -> torch.Tensor:
    """Returns the scores of one granularity in a fixed order."""
    if granularity == "node":
        return scores.nodes
    if granularity == "edge":
        return scores.edges[scores.graph.mask]
    return torch.cat([one.flatten() for _, one in sorted(scores.attention_edges.items())])


def edges_needed(sizing: Experiment, scores: Scores) -> int:
    """Returns how many edges of the ranking are needed for the target on other prompts."""
    ranked = RankedComponents.of(scores, "edge", "absolute")
    search = search_ranked(ranked, sizing, TARGET)
    return int(search.chosen[0])


def compare_methods(
    model_name: str,
    task_name: str,
    checkpoint: Path,
    *,
    methods: Sequence[str],
    gradients: Sequence[str],
    n_prompts: int,
    n_sizing: int,
) -> Iterator[dict[str, object]]:
    """Yields a row for each method and granularity; costs are the least of three calls."""
    model, task = load_model(model_name), get_task(task_name)
    assert model.tokenizer is not None
    ranking, sizing = (
        prepare_experiment(model, prompts, metric=task.metric)
        for prompts in task.draw(model.tokenizer, n_prompts, n_sizing)
    )
    started = time.perf_counter()
    with Progress() as progress:
        bar = progress.add_task(f"exact patching: {model_name}, {task_name}")
        exact = exact_patching(
            ranking,
            checkpoint=checkpoint,
            on_step=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    seconds = {"exact_patching": time.perf_counter() - started}
    all_scores: dict[tuple[str, str], Scores] = {}
    for gradient in gradients if is_gated(model) else ("-",):
        for name in methods:
            if name == "exact_patching":
                all_scores[name, "-"] = exact
                continue
            with nullcontext() if gradient == "-" else gate_gradient(model, gradient):
                for _ in range(3):
                    started = time.perf_counter()
                    all_scores[name, gradient] = METHODS[name](ranking)
                    taken = time.perf_counter() - started
                    seconds[name] = min(taken, seconds.get(name, taken))
    for (name, gradient), scores in all_scores.items():
        needed = edges_needed(sizing, scores)
        for granularity in ("node", "edge", "attention_edge"):
            truth = values_of(exact, granularity)
            strongest = truth.abs().argsort(descending=True)[:N_STRONGEST]
            pair = pd.DataFrame(
                {"exact": truth[strongest], "score": values_of(scores, granularity)[strongest]}
            )
            yield {
                "model": model_name,
                "task": task_name,
                "granularity": granularity,
                "method": name,
                "gate_gradient": gradient,
                "spearman": round(pair.corr("spearman").iloc[0, 1], 3),
                "pearson": round(pair.corr("pearson").iloc[0, 1], 3),
                "components": len(strongest),
                "edges_at_target": needed if granularity == "edge" else None,
                "cost": round(seconds[name] / seconds["attribution_patching"], 1),
                "prompts": n_prompts,
            }


def main() -> None:
    """Reads the command line and writes the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--prompts", type=int, default=30, help="prompts that rank")
    parser.add_argument("--sizing", type=int, default=100, help="prompts that size circuits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=GRADIENTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, checkpoints = [], []
    for model in ("dense", "sparse"):
        for task in ("ioi", "greater_than"):
            checkpoints.append(arguments.out / f".{model}.{task}.exact")
            rows += compare_methods(
                model,
                task,
                checkpoints[-1],
                methods=list(dict.fromkeys(["attribution_patching", *arguments.methods])),
                gradients=arguments.gradients,
                n_prompts=arguments.prompts,
                n_sizing=arguments.sizing,
            )
    table = pd.DataFrame(rows).astype({"edges_at_target": "Int64"})
    print(table.to_string(index=False))
    write_text(arguments.out / "against_exact.csv", table.to_csv(index=False))
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
