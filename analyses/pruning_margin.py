"""What a margin of pruning buys: faithfulness on fresh prompts, and what it costs in size.

    python analyses/pruning_margin.py --out docs/pruning_margin.csv

Circuits of edges of the embedded pair are found along the ranking and pruned with margins of 0, 1
and 2 standard errors, from few and from more prompts and from other draws of them; each is then run
on many prompts that took no part. A row is written as soon as it is known, and rows that are there
are not made again.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from circuits.attribute import attribution_patching
from circuits.cli.console import say
from circuits.discovery.prune import prune
from circuits.discovery.ranked import RankedComponents, first_of, search_ranked
from circuits.discovery.search import group_faithfulness
from circuits.files import write_text
from circuits.intervene import Experiment, prepare_experiment
from circuits.models.load import load_model, tokenizer_of, versions
from circuits.tasks import get_task

MODELS, TASKS = ("dense", "sparse"), ("ioi", "greater_than")
PROMPTS, SEEDS, MARGINS = (50, 100), (0, 1), (0.0, 1.0, 2.0)
N_FRESH = 200
TARGET = 0.9


def faithfulness(ranked: RankedComponents, experiment: Experiment, chosen: list[Any]) -> float:
    """Returns the faithfulness of chosen components on all prompts of an experiment."""
    values = ranked.run(experiment, chosen).double()[None]
    groups = ranked.groups(experiment.prompts)
    full, empty = (getattr(experiment, name).double() for name in ("full", "empty"))
    return float(group_faithfulness(values, full, empty, groups))


def rows_of(name: str, task_name: str, n_prompts: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields what is known of the circuit before pruning, then with each margin."""
    model, task = load_model(name), get_task(task_name)
    drawn = task.build(
        tokenizer_of(model),
        n_ranking=n_prompts,
        n_sizing=n_prompts,
        n_reporting=N_FRESH,
        seed=seed,
    )
    ranking, sizing, fresh = (
        prepare_experiment(model, part, metric=task.metric)
        for part in (drawn.ranking, drawn.sizing, drawn.reporting)
    )
    ranked = RankedComponents.of(attribution_patching(ranking), "edge", "absolute")
    search = search_ranked(ranked, sizing, TARGET)
    known = {"model": name, "task": task_name, "prompts": n_prompts, "seed": seed}
    circuits = {None: first_of(ranked.orders, search.chosen)}
    circuits |= {by: list(prune(ranked, sizing, search, margin=by).chosen) for by in MARGINS}
    for margin, chosen in circuits.items():
        yield known | {
            "margin": margin,
            "size": ranked.circuit(chosen).size,
            "sizing": faithfulness(ranked, sizing, chosen),
            "fresh": faithfulness(ranked, fresh, chosen),
        }


def main() -> None:
    """Reads the command line and makes the rows that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the table to write, a .csv")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)  # Sums are added in another order with more.
    keys = ["model", "task", "prompts", "seed"]
    table = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=keys)
    there = set(table[keys].itertuples(index=False, name=None))
    for cell in itertools.product(MODELS, TASKS, PROMPTS, SEEDS):
        if cell in there:
            continue
        rows = pd.DataFrame(rows_of(*cell)).assign(**versions())
        table = pd.concat([table, rows]) if len(table) else rows
        write_text(out, table.to_csv(index=False))
        say(f"{out}: {', '.join(map(str, cell))}")


if __name__ == "__main__":
    main()
