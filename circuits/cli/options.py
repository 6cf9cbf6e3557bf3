"""The options that several commands have, and what their arguments mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.seeds import SEED_RANGE, is_seed

if TYPE_CHECKING:
    from torch import Tensor

    from circuits.sparsify.data import TokenStream

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A task's name, a .csv or .jsonl of prompt pairs, a .py that registers a task, or "
        "mib:ioi and the like for the MIB benchmark's. Repeatable.",
    ),
]
NPrompts = Annotated[
    int,
    typer.Option("--prompts", help="Prompts in each of three sets: to rank, to size, to report."),
]


def _checked_seed(seed: int) -> int:
    if not is_seed(seed):
        raise typer.BadParameter(f"--seed is {seed}; it must be {SEED_RANGE}")
    return seed


Seed = Annotated[
    int,
    typer.Option(callback=_checked_seed, help="Seed of prompts, random circuits and resamples."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Searches (of one model for one task) at a time, each in a process with one thread. "
        "Left out: as many as PyTorch has threads for models of up to 20 million parameters on a "
        "CPU under Linux, else 1. Each needs the memory of a search; the models are shared.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code from the hub, for names that load with it."
    ),
]

DEFAULT_TASKS = ["ioi", "greater_than"]


def in_processes(processes: int) -> str:
    """Returns how many searches run at a time, as part of a sentence; nothing of a single one."""
    return f" in {processes} processes" if processes > 1 else ""


def text_stream(path: Path, tokenizer: Any, context: int, seed: int) -> TokenStream:
    """Returns the stream of a UTF-8 text file."""
    from circuits.sparsify.data import TextStream

    return TextStream(path, tokenizer, context=context, seed=seed)


def held_out_texts(path: Path, models: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Returns held-out sequences of a text by model, each in the model's own tokens."""
    from circuits.models.tokenization import tokenizer_fingerprint

    context = min(128, *(model.cfg.n_ctx for model in models.values()))
    streams: dict[str, TokenStream] = {}
    found = {}
    for name, model in models.items():
        stream = streams.get(key := tokenizer_fingerprint(model.tokenizer))
        if stream is None:
            stream = streams[key] = text_stream(path, model.tokenizer, context, seed)
        found[name] = stream.held_out("selection", 64)
    return found
