"""`circuits tasks` and `circuits push`: what there is, and handing it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from circuits.cli.console import out_console, usage_errors
from circuits.cli.options import Seed, TrustRemoteCode, read_task


def tasks_command(
    task: Annotated[str | None, typer.Argument(help="Show prompts of this task.")] = None,
    model: Annotated[str, typer.Option(help="Model whose tokenizer to use.")] = "dense",
    show: Annotated[int, typer.Option(help="How many prompts.")] = 5,
    seed: Seed = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List the tasks, or show prompts of one."""
    with usage_errors():
        from circuits.models.load import load_model
        from circuits.tasks import get_task, task_names

        if task is None:
            table = Table("task", "metric", "what it is")
            for name in task_names():
                table.add_row(name, get_task(name).metric, get_task(name).description)
            out_console.print(table)
            return
        chosen = read_task(task)
        tokenizer: Any = load_model(model, trust_remote_code=trust_remote_code).tokenizer
        chosen.draw(tokenizer, show, seed=seed)  # The checks.
    for pair in chosen.pairs(tokenizer, show, seed):
        answers = ", ".join(pair.answers[:3]) + (" ..." if len(pair.answers) > 3 else "")
        out_console.print(f"clean      {pair.clean}", markup=False, highlight=False)
        out_console.print(f"corrupted  {pair.corrupted}", markup=False, highlight=False)
        out_console.print(f"answer     {answers}\n", markup=False, highlight=False)


def push_command(
    model: Annotated[Path, typer.Argument(help="A model's folder, such as run/model.")],
    repository: Annotated[str, typer.Argument(help="Where to, as owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
) -> None:
    """Put a model on the Hugging Face hub, with a card that says how it was made."""
    with usage_errors():
        from circuits.models.hub import push_to_hub

        url = push_to_hub(model, repository, private=private)
    out_console.print(f"uploaded to {url}", soft_wrap=True)
