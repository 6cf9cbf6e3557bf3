"""Makes the embedded models: trains the dense one from scratch, then its sparse twin and controls.

    python analyses/make_embedded_pair.py --out pair

Writes `pair/dense` and `pair/sparse`, which are shipped in `circuits/assets`, and next to them
twins from other seeds (`sparse-seed1`, `sparse-seed2`) and the dense model trained on for as many
steps without a gate (`dense-finetuned`). A GPT-2 of 6 layers with 8 heads each learns the synthetic
corpus of `circuits.tasks.corpus` at a context of 128 tokens. Whole heads are dropped from training
sequences, so that no head can be the only one to do a thing and the work spreads, as it does in
large language models. The dense model is judged by its accuracy and by how many heads and edges its
circuits have, before any sparse training is looked at. The twins and the control then come from
`circuits train`, the command that users have.

Each cycle of the training is kept in a folder of its own, and so is each run; a second call goes on
from there.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits.cli import main as circuits
from circuits.discovery.find_circuits import discover
from circuits.metrics import METRICS, accuracy, last_logits
from circuits.models.load import load_model
from circuits.results.discovery import DiscoverConfig
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import CorpusStream
from circuits.tasks import get_task
from circuits.tasks.corpus import LIST_WORDS, NAMES, corpus_tokenizer

CONTEXT = 128
BATCH = 16
WARM_UP_STEPS = 100
COPYING_REACH = 24  # tokens
COPYING = 0.3
LEAST_HEADS, LEAST_EDGES = 6, 40
SPARSE_RECIPE = TrainConfig(
    steps=3000,
    batch_size=16,
    learning_rate=1.5e-3,
    penalty="rms",
    edge_weight=8.0,
    lambda_rate=2.0,
    slack=0.008,
)
TRAINED = {
    "sparse": ("--seed", "0"),
    "sparse-seed1": ("--seed", "1"),
    "sparse-seed2": ("--seed", "2"),
    "dense-finetuned": ("--seed", "0", "--control"),
}
INITIALIZER_RANGE = 0.06  # GPT-2's 0.02 suits a width of 768; this scales it to ours


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Highest learning rate.
        copying_share: Share of the steps, at the start, in which only copying is taught.
        head_dropout: How likely each head is absent from a sequence in the end.
        dropout_from: Share of the steps after which the first heads are dropped. Heads must learn
            to work together before they can learn to do without each other.
        year_rows: Sequences of each batch that hold growing years only, the behaviour that is
            learned last: it needs an order of a hundred tokens.
    """

    steps: int
    learning_rate: float
    copying_share: float
    head_dropout: float
    dropout_from: float
    year_rows: int = 0

    def learning_rate_factor(self, step: int) -> float:
        """Returns a warm-up, a plateau while copying is learned, then a half cosine to nothing."""
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        plateau = self.copying_share * self.steps
        if step < plateau:
            return warm_up
        return warm_up * 0.35 * (1 + math.cos(math.pi * (step - plateau) / (self.steps - plateau)))

    def dropout(self, step: int) -> float:
        """Returns how likely each head is absent at this step."""
        risen = 1.0 if self.dropout_from == 0 else (step / self.steps - self.dropout_from) / 0.2
        return self.head_dropout * min(1.0, max(0.0, risen))


CYCLES = (
    Cycle(2300, 3e-3, copying_share=0.3, head_dropout=0.15, dropout_from=0.5),
    Cycle(1000, 2e-3, copying_share=0.0, head_dropout=0.1, dropout_from=0.0),
    Cycle(1500, 3e-3, copying_share=0.0, head_dropout=0.1, dropout_from=0.0),
    Cycle(1500, 2e-3, copying_share=0.0, head_dropout=0.05, dropout_from=0.0, year_rows=4),
)


@dataclass
class HeadDropout:
    """How likely each head is absent from a whole training sequence, now."""

    probability: float = 0.0


def drop_whole_heads(model: GPT2LMHeadModel, dropout: HeadDropout) -> list[Any]:
    """Lets each head be absent from whole training sequences until the handles are removed."""

    def drop(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if not module.training:
            return None
        (z,) = inputs
        probability = dropout.probability
        batch, pos, width = z.shape
        heads = model.config.n_head
        kept = (torch.rand(batch, 1, heads, 1) >= probability) / (1 - probability)
        return ((z.view(batch, pos, heads, width // heads) * kept).view(batch, pos, width),)

    blocks: Any = model.transformer.h
    return [block.attn.c_proj.register_forward_pre_hook(drop) for block in blocks]


@torch.no_grad()
def let_heads_copy(model: GPT2LMHeadModel) -> None:
    """Adds to each layer's heads a small identity: together they write what they attend to.

    Copying needs attention and output to agree before either is of use, and a model this small
    takes long to find both at once. The identity gives it one of them (compare Trockman and
    Kolter 2023, arXiv 2305.09828).
    """
    width = model.config.n_embd
    blocks: Any = model.transformer.h
    for block in blocks:
        rotation = torch.linalg.qr(torch.randn(width, width)).Q
        block.attn.c_attn.weight[:, 2 * width :] += rotation
        block.attn.c_proj.weight += COPYING * rotation.T


def is_copied(
    tokens: Int[Tensor, "batch pos"], content: Int[Tensor, " words"]
) -> Bool[Tensor, "batch pos"]:
    """Returns where a content word stands that stood there shortly before as well."""
    seen = torch.zeros_like(tokens, dtype=torch.bool)
    for distance in range(1, COPYING_REACH):
        seen[:, distance:] |= tokens[:, distance:] == tokens[:, :-distance]
    return seen & torch.isin(tokens, content)


def loss_of(
    model: GPT2LMHeadModel, tokens: Int[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy in nats of predicting the `counted` tokens."""
    logits = model(tokens).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return losses[counted[:, 1:]].mean()


@torch.no_grad()
def progress_report(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, batch: torch.Tensor
) -> str:
    """Returns cross-entropy on unseen documents, and accuracy and metric of both tasks."""
    model.eval()
    parts = [f"CE {loss_of(model, batch, torch.ones_like(batch, dtype=torch.bool)).item():.4f}"]
    for name in ("ioi", "greater_than"):
        task = get_task(name)
        (prompts,) = task.draw(tokenizer, 200, seed=17)
        logits = last_logits(model(prompts.clean).logits, prompts.last)
        metric = METRICS[task.metric](logits, prompts, logits).mean().item()
        correct = accuracy(logits, prompts).float().mean().item()
        parts.append(f"{name} {correct:.1%} {task.metric} {metric:.3f}")
    model.train()
    return ", ".join(parts)


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Returns the model before training."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=6,
        n_head=8,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=cast("int", tokenizer.bos_token_id),
        eos_token_id=cast("int", tokenizer.eos_token_id),
        pad_token_id=cast("int", tokenizer.pad_token_id),
    )
    model = GPT2LMHeadModel(config)
    let_heads_copy(model)
    return model


def train_cycle(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, cycle: Cycle, seed: int, skip: int
) -> None:
    """Trains the model in place; `skip` is the number of steps that came before."""
    console = Console()
    stream = CorpusStream(tokenizer, context=CONTEXT, seed=seed)
    copying_stream = CorpusStream(
        tokenizer, context=CONTEXT, seed=seed, behaviours=("indirect_object",)
    )
    year_stream = CorpusStream(tokenizer, context=CONTEXT, seed=seed, behaviours=("growing_years",))
    content = torch.tensor(tokenizer.convert_tokens_to_ids([*NAMES, *LIST_WORDS]))
    heldout = stream.held_out("control", 32)
    dropout = HeadDropout()
    handles = drop_whole_heads(model.train(), dropout)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cycle.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cycle.learning_rate_factor)
    started = time.perf_counter()
    with Progress(console=console) as progress:
        bar = progress.add_task("dense model", total=cycle.steps)
        for step in range(cycle.steps):
            dropout.probability = cycle.dropout(step)
            if step < cycle.copying_share * cycle.steps:
                batch = copying_stream.batch(skip + step, BATCH)
                counted = is_copied(batch, content)
            else:
                batch = stream.batch(skip + step, BATCH - cycle.year_rows)
                if cycle.year_rows:
                    batch = torch.cat([batch, year_stream.batch(skip + step, cycle.year_rows)])
                counted = torch.ones_like(batch, dtype=torch.bool)
            loss = loss_of(model, batch, counted)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(bar, advance=1, description=f"dense model, loss {loss.item():.3f}")
            if (step + 1) % 100 == 0 or step + 1 == cycle.steps:
                elapsed = time.perf_counter() - started
                report = progress_report(model, tokenizer, heldout)
                progress.console.print(f"step {step + 1} ({elapsed:.0f} s): {report}")
    for handle in handles:
        handle.remove()
    model.eval()


def train_dense(out: Path, seed: int) -> Path:
    """Trains the dense model, or the cycles that are not yet in `out`; returns its folder."""
    tokenizer = corpus_tokenizer(context=CONTEXT)
    model: Any = None
    folder, skip = out / "dense", 0
    for number, cycle in enumerate(CYCLES, start=1):
        folder = out / ("dense" if number == len(CYCLES) else f"dense.cycle{number}")
        torch.manual_seed(seed + number - 1)
        if folder.is_dir():
            model = GPT2LMHeadModel.from_pretrained(folder)
        else:
            model = new_model(tokenizer) if model is None else model
            train_cycle(model, tokenizer, cycle, seed, skip)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        skip += cycle.steps
    return folder


def check_dense(folder: Path) -> None:
    """Prints how well the dense model does both tasks and how big its circuits are.

    Raises:
        RuntimeError: a circuit is so small that there would be nothing to simplify.
    """
    model = load_model(folder)
    for name in ("ioi", "greater_than"):
        for ablation in ("corrupted", "mean"):
            config = DiscoverConfig(granularities=("head", "edge"), ablation=ablation)
            found = discover(model, get_task(name), config)
            heads, edges = found.circuits["head"].size, found.circuits["edge"].size
            Console().print(
                f"{name}, {ablation} ablation: accuracy {found.accuracy:.1%}, {found.metric} "
                f"{found.metric_full:.3f}, {heads:.0f} heads, {edges:.0f} edges"
            )
            if heads < LEAST_HEADS or edges < LEAST_EDGES:
                raise RuntimeError(
                    f"a circuit of {heads:.0f} heads and {edges:.0f} edges leaves nothing to "
                    f"simplify; at least {LEAST_HEADS} and {LEAST_EDGES} are wanted"
                )


def make_model(dense: Path, out: Path, name: str, further: Sequence[str]) -> None:
    """Trains a twin or a control by the command that users have; a model that is there stays."""
    run = out / f"{name}.run"
    if (out / name).is_dir():
        return
    recipe = asdict(SPARSE_RECIPE)
    given = ("steps", "batch_size", "learning_rate", "penalty", "edge_weight", "lambda_rate")
    options = [
        part
        for field in (*given, "slack")
        for part in (f"--{field.replace('_', '-')}", str(recipe[field]))
    ]
    resume = ["--resume"] if run.is_dir() else []
    code = circuits(
        ["train", "--model", str(dense), "--out", str(run), *options, *further, *resume]
    )
    if code != 0:
        raise SystemExit(code)
    shutil.copytree(run / "model", out / name)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums are added in another order with more.
    arguments.out.mkdir(parents=True, exist_ok=True)
    dense = train_dense(arguments.out, arguments.seed)
    check_dense(dense)
    for name, further in TRAINED.items():
        make_model(dense, arguments.out, name, further)


if __name__ == "__main__":
    main()
