"""What a step of post-training costs, against a step of the same model without a gate.

    python benchmarks/training.py --out docs/training_benchmarks.csv

Both take the same batch through forward pass, loss, backward pass, clipping and AdamW; they are
timed in turn, and the median of the paired ratios is reported. `--memory-of gpt2 --variant gate`
prints the most that a process holds which makes the model and takes a few steps. Models have random
weights, which cost the same as trained ones: one of the embedded shape, the same with long
sequences, and one of GPT-2 small's (124M weights).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from rich.progress import track
from torch import Tensor, nn

from circuits.models.load import copy_model, new_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.loss import cross_entropy
from circuits.sparsify.run import Run
from circuits.workers import Workers
from measure import Job, report, resident_bytes, seconds_of

if TYPE_CHECKING:
    from circuits.models.backend import Model

SMALL = {"n_layers": 6, "n_heads": 8, "d_model": 128, "d_vocab": 400}
SHAPES = {
    "embedded": {**SMALL, "batch": 16, "n_ctx": 128},
    "long": {**SMALL, "batch": 1, "n_ctx": 2048},
    "gpt2": {
        "n_layers": 12,
        "n_heads": 12,
        "d_model": 768,
        "d_vocab": 50257,
        "batch": 4,
        "n_ctx": 128,
    },
}
VARIANTS: dict[str, dict[str, object]] = {
    "gate": {},
    "gate, by hook points": {"attention": "hooks"},
    "gate, compiled": {"compile": True},
    "gate, recompute": {"recompute": True},
    "gate, LoRA of rank 16": {"lora_rank": 16},
}
if torch.cuda.is_available():  # Most CPUs emulate it, and take many times as long.
    VARIANTS["gate, bfloat16"] = {"precision": "bfloat16"}


class RandomTokens:
    """Random tokens, the same ones for the same step."""

    def __init__(self, context: int, d_vocab: int) -> None:
        self.context, self._d_vocab = context, d_vocab

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "batch pos"]:
        """Returns the batch of a step."""
        generator = torch.Generator().manual_seed(step)
        return torch.randint(0, self._d_vocab, (batch_size, self.context), generator=generator)

    def held_out(self, part: str, n_sequences: int) -> Int[Tensor, "batch pos"]:
        """Returns sequences that are in no batch of the first steps."""
        return self.batch(10**9 + len(part), n_sequences)

    def describe(self) -> dict[str, Any]:
        """Returns what the data is."""
        return {"data": "random tokens"}


def random_model(shape: str) -> Model:
    """Returns a model with random weights."""
    sizes = {name: value for name, value in SHAPES[shape].items() if name != "batch"}
    torch.manual_seed(0)
    return new_model(
        {
            **sizes,
            "d_head": sizes["d_model"] // sizes["n_heads"],
            "d_mlp": 4 * sizes["d_model"],
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
    )


def gated_step(model: Model, shape: str, **changes: object) -> Job:
    """Returns a step of post-training, as `circuits train` takes it."""
    config = TrainConfig(
        batch_size=SHAPES[shape]["batch"], control_sequences=1, selection_sequences=1,
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    folder = tempfile.mkdtemp()
    stream = RandomTokens(model.cfg.n_ctx, model.cfg.d_vocab)
    run = Run.start(model, stream, config, Path(folder), (), False, Workers())
    return run.train_step


def dense_step(model: Model, shape: str) -> Job:
    """Returns a step of the same training without a gate."""
    trained = copy_model(model).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.01)
    stream = RandomTokens(model.cfg.n_ctx, model.cfg.d_vocab)

    def step() -> None:
        tokens = stream.batch(0, SHAPES[shape]["batch"]).to(trained.W_E.device)
        optimizer.zero_grad()
        loss = cross_entropy(trained(tokens), tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        loss.item()  # As the log asks for it.

    return step


def time_ratios(shape: str, repeats: int) -> list[dict[str, object]]:
    """Returns the median paired ratio of each variant to the dense step."""
    model = random_model(shape)
    rows = []
    for name, changes in VARIANTS.items():
        pair = dense_step(model, shape), gated_step(model, shape, **changes)
        for step in (*pair, *pair):
            step()
        found = [
            [seconds_of(step) for step in pair]
            for _ in track(range(repeats), description=f"{shape}: {name}")
        ]
        ratios = [own / least for least, own in found]
        rows.append(
            {
                "model": shape,
                "batch": SHAPES[shape]["batch"],
                "T": SHAPES[shape]["n_ctx"],
                "step": name,
                "dense_seconds": round(median(least for least, _ in found), 3),
                "seconds": round(median(own for _, own in found), 3),
                "ratio": round(median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
            }
        )
    return rows


def peak_memory(shape: str, variant: str) -> float:
    """Returns how many GB this process holds at most while it takes three steps."""
    model = random_model(shape)
    if variant == "dense":
        step = dense_step(model, shape)
    else:
        step = gated_step(model, shape, **VARIANTS[variant])
    for _ in range(3):
        step()
    return resident_bytes("VmHWM") / 1e9


def main() -> None:
    """Reads the command line, measures and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=SHAPES, help="print peak memory (Linux)")
    parser.add_argument("--variant", choices=["dense", *VARIANTS], default="gate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(f"{peak_memory(arguments.memory_of, arguments.variant):.2f} GB")
        return
    rows = [row for shape in arguments.models for row in time_ratios(shape, arguments.repeats)]
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
