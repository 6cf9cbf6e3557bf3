"""Which recipe of post-training to take: what the defaults are chosen by.

    python analyses/recipes.py --out recipes --table docs/recipes.csv

The embedded dense model is post-trained for a short while, 400 steps, by several recipes, each with
the same batches, bound and seed. A row of the table is the sparsest state that keeps the bound, CE
<= the dense model's; without such a state `satisfied` is False and the row is that of the last one.
Every run is kept in `--out`, so an interrupted call goes on; `--only` makes one recipe, so that
several processes can share them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from circuits.files import write_text
from circuits.models.load import load_model, tokenizer_of, versions
from circuits.models.saving import frozen_parameters
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.train import post_train

CONTEXT = 128
VARIED = ("penalty", "edge_weight", "lambda_rate", "learning_rate")
STRONGER = {"penalty": "rms", "edge_weight": 8.0, "lambda_rate": 2.0}
RECIPES: dict[str, dict[str, Any]] = {
    "mean, weight 3": {"penalty": "mean", "edge_weight": 3.0, "lambda_rate": 1.0},
    "rms, weight 3": {"penalty": "rms", "edge_weight": 3.0, "lambda_rate": 1.0},
    "rms, weight 8": STRONGER,
    "rms, weight 8, slower": STRONGER | {"learning_rate": 5e-4},
    "rms, weight 8, faster": STRONGER | {"learning_rate": 3e-3},
}


def row(name: str, out: Path) -> dict[str, Any]:
    """Returns what a recipe comes to; a run that has begun goes on."""
    changes: dict[str, Any] = {"learning_rate": 1.5e-3} | RECIPES[name]
    config = TrainConfig(steps=400, batch_size=16, evaluate_every=20, **changes)
    dense, run = load_model("dense"), out / name.replace(", ", "-").replace(" ", "-")
    stream = CorpusStream(tokenizer_of(dense), context=CONTEXT)
    frozen = frozen_parameters(dense)
    result = post_train(dense, stream, config, run, frozen=frozen, resume=run.is_dir())
    return {
        "recipe": name,
        **{key: asdict(config)[key] for key in VARIED},
        "satisfied": result.satisfied,
        "density": result.density.overall,
        "densest_layer": result.density.per_layer.max().item(),
        "ce": result.ce,
        "tau": result.tau,
        "best_step": result.best_step,
        "steps": result.steps,
        "context": CONTEXT,
    }


def main() -> None:
    """Reads the command line, trains what is not yet there and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--table", type=Path, help="CSV file to write")
    parser.add_argument("--only", choices=RECIPES, action="append", help="these recipes alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums are added in another order with more.
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([row(name, arguments.out) for name in arguments.only or RECIPES])
    Console().print(table.to_string(index=False))
    if arguments.table is not None:
        write_text(arguments.table, table.assign(**versions()).to_csv(index=False))


if __name__ == "__main__":
    main()
