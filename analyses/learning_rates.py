"""Which learning rate post-training wants, by the width of the model.

    python analyses/learning_rates.py --out learning_rates --table docs/learning_rates.csv

Models of 4 layers and growing width are trained on the synthetic corpus, and each is post-trained
for a short while with several learning rates and the default recipe otherwise. A row of the table
is the sparsest state within 0.02 nats of the dense model's CE; without such a state `satisfied` is
False and the row is that of the last one. Every part that is done is kept in `--out`, so an
interrupted call goes on; `--only` takes one width, so that several processes can share them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from real_text import new_dense, trained
from rich.console import Console

from circuits.files import write_text
from circuits.models.load import load_model, versions
from circuits.models.saving import save_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import CorpusStream
from circuits.tasks.corpus import corpus_tokenizer

CONTEXT, HEAD_WIDTH = 128, 16
WIDTHS = (64, 128)
LEARNING_RATES = (5e-4, 1.5e-3, 4.5e-3)
DENSE = TrainConfig(
    gate=False, steps=1000, batch_size=16, learning_rate=3e-3, beta2=0.98, weight_decay=0.05
)
SPARSE = TrainConfig(steps=400, batch_size=16, slack=0.02, evaluate_every=20)


def dense_model(width: int, out: Path) -> Any:
    """Returns the dense model of a width, which is trained if it is not there yet."""
    folder, tokenizer = out / f"dense-{width}", corpus_tokenizer(context=CONTEXT)
    if not folder.is_dir():
        model = new_dense(
            tokenizer,
            out / f"untrained-{width}",
            context=CONTEXT,
            width=width,
            heads=width // HEAD_WIDTH,
            spread=0.5 / width**0.5,
        )
        stream = CorpusStream(tokenizer, context=CONTEXT)
        save_model(trained(model, stream, DENSE, out / f"dense-{width}.run").model, folder)
    return load_model(folder)


def rows(width: int, out: Path) -> list[dict[str, Any]]:
    """Returns what the learning rates come to at one width."""
    dense, found = dense_model(width, out), []
    stream = CorpusStream(dense.tokenizer, context=CONTEXT)
    for rate in LEARNING_RATES:
        recipe = replace(SPARSE, learning_rate=rate)
        result = trained(dense, stream, recipe, out / f"sparse-{width}-{rate:g}.run")
        found.append(
            {
                "d_model": width,
                "learning_rate": rate,
                "satisfied": result.satisfied,
                "density": result.density.overall,
                "ce": result.ce,
                "dense_ce": result.dense_ce,
                "best_step": result.best_step,
                "steps": result.steps,
                "context": CONTEXT,
            }
        )
    return found


def main() -> None:
    """Reads the command line, trains what is not yet there and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--table", type=Path, help="CSV file to write")
    parser.add_argument("--only", type=int, choices=WIDTHS, action="append", help="these widths")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums are added in another order with more.
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = [row for width in arguments.only or WIDTHS for row in rows(width, arguments.out)]
    table = pd.DataFrame(found)
    Console().print(table.to_string(index=False))
    if arguments.table is not None:
        write_text(arguments.table, table.assign(**versions()).to_csv(index=False))


if __name__ == "__main__":
    main()
