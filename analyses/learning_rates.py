"""Which learning rate post-training wants, by the width of the model.

    python analyses/learning_rates.py --out learning_rates

Models of 4 layers and growing width are trained on the synthetic corpus for a short while, and each
is post-trained with several learning rates and the default recipe otherwise. Writes
`OUT/learning_rates.csv`: a row for each pair, with the density of the sparsest state that keeps the
bound CE <= the dense model's; without such a state `satisfied` is False and the row is that of the
last one. Every part that is done is kept, so an interrupted call goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from circuits.files import write_text
from circuits.models import load_model, versions
from circuits.saving import frozen_parameters, save_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.corpus import corpus_tokenizer
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.train import TrainResult, post_train

CONTEXT = 128
WIDTHS = (64, 128, 256)
LEARNING_RATES = (5e-4, 1.5e-3, 4.5e-3)
DENSE = TrainConfig(
    gate=False, steps=500, batch_size=16, learning_rate=3e-3, beta2=0.98, weight_decay=0.05
)


def untrained(width: int, folder: Path) -> None:
    """Writes a model with random weights, of heads of 16 numbers."""
    torch.manual_seed(0)
    tokenizer = corpus_tokenizer(context=CONTEXT)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=4,
        n_head=width // 16,
        initializer_range=0.5 / width**0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trained(model: Any, recipe: TrainConfig, run: Path) -> TrainResult:
    """Returns what the training of a model comes to; a run that has begun goes on."""
    stream = CorpusStream(model.tokenizer, context=CONTEXT)
    frozen = frozen_parameters(model)
    return post_train(model, stream, recipe, run, frozen=frozen, resume=run.is_dir())


def dense_model(width: int, out: Path) -> Any:
    """Returns the dense model of a width, which is trained if it is not there yet."""
    folder, start = out / f"dense-{width}", out / f"untrained-{width}"
    if not folder.is_dir():
        if not start.is_dir():
            untrained(width, start)
        save_model(trained(load_model(start), DENSE, out / f"dense-{width}.run").model, folder)
    return load_model(folder)


def main() -> None:
    """Reads the command line, trains what is not yet there and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=300, help="of each post-training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums are added in another order with more.
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for width in WIDTHS:
        dense = dense_model(width, arguments.out)
        for rate in LEARNING_RATES:
            recipe = TrainConfig(
                steps=arguments.steps,
                batch_size=16,
                learning_rate=rate,
                penalty="rms",
                edge_weight=8.0,
                lambda_rate=2.0,
                evaluate_every=20,
            )
            result = trained(dense, recipe, arguments.out / f"sparse-{width}-{rate:g}.run")
            rows.append(
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
            table = pd.DataFrame(rows).assign(**versions())
            write_text(arguments.out / "learning_rates.csv", table.to_csv(index=False))
    Console().print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
