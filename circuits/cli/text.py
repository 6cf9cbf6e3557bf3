"""`circuits text`: text that a model writes itself, to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.console import err_console, out_console, said_warnings, say, usage_errors
from circuits.cli.options import Device, Seed, TrustRemoteCode
from circuits.progress import shown_steps
from circuits.reading import read_text

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


def _number_of_tokens(text: str) -> int:
    """Reads 300000, 300k or 1.5M."""
    digits = text.strip().lower().rstrip("km")
    unit = text.strip().lower()[len(digits) :]
    try:
        return round(float(digits) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a number such as 300000, 300k or 1M") from None


def text_command(
    out: Annotated[Path, typer.Option(help="File to write, .jsonl: --data of circuits train.")],
    model: Annotated[str, typer.Option(help="The dense model: a name or folder.")] = "dense",
    tokens: Annotated[str, typer.Option(help="How many tokens, such as 300k or 1M.")] = "1M",
    openings: Annotated[
        Path | None,
        typer.Option(help="What documents begin with, in turn: UTF-8 text, one opening a line."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Documents written at once.")] = 64,
    length: Annotated[int, typer.Option(help="Most tokens of a document.")] = 256,
    temperature: Annotated[
        float, typer.Option(help="Logits are divided by it; 1: the model's own predictions.")
    ] = 1.0,
    precision: Annotated[
        str,
        typer.Option(help="What the model computes in: float32, bfloat16, or auto (what is fast)."),
    ] = "float32",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a stopped call left.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Sample text from a model: data for post-training that it knows as well as it ever can."""
    with usage_errors(), said_warnings():
        import torch

        from circuits.choices import PRECISIONS, check_choice
        from circuits.models.load import checked_device, load_model
        from circuits.sparsify.own_text import PARTIAL, TextConfig, check_paths, write_own_text
        from circuits.sparsify.precision import choose_precision

        check_choice("precision", precision, PRECISIONS)
        check_paths(out, resume=resume)
        config = TextConfig(
            n_tokens=_number_of_tokens(tokens),
            openings=() if openings is None else _lines(openings),
            batch_size=batch_size,
            length=length,
            temperature=temperature,
            seed=seed,
        )
        loaded = load_model(
            model,
            device=device,
            dtype=getattr(torch, choose_precision(precision, checked_device(device))),
            trust_remote_code=trust_remote_code,
        )
    err_console.print(f"sampling from {model} on {device}, seed {seed}")
    with shown_steps(config.n_tokens, console=err_console) as steps:

        def tell(n_tokens: int) -> None:
            if resume and steps.done == 0:
                steps.begin_at(n_tokens)
            steps.reach(n_tokens, f"{n_tokens:,} of {config.n_tokens:,} tokens")

        try:
            written = write_own_text(
                loaded,
                out,
                config,
                resume=resume,
                on_tokens=tell,
            )
        except KeyboardInterrupt:
            say(f"interrupted; finished batches are in {out}{PARTIAL}: go on with --resume")
            raise typer.Exit(130) from None
    out_console.print(
        f"{written.n_documents:,} documents of {written.n_tokens:,} tokens written to {out}",
        soft_wrap=True,
        highlight=False,
    )


def _lines(path: Path) -> tuple[str, ...]:
    openings = tuple(line.rstrip() for line in read_text(path).splitlines() if line.strip())
    if not openings:
        raise ValueError(f"{path} holds no openings; give one a line, or leave --openings out")
    return openings
