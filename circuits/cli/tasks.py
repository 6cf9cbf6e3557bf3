"""`circuits tasks`: which behaviours there are, and which of them a model does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from circuits.cli.console import out_console, print_table, progress_bar, usage_errors
from circuits.cli.options import Device, Seed, TrustRemoteCode
from circuits.files import check_file, write_text

if TYPE_CHECKING:
    from circuits.discovery.behaviours import Behaviour
    from circuits.models.backend import Model


_COLUMNS = ("task", "does", "prompts", "right", "top", "metric", "over ablated")


def tasks_command(
    task: Annotated[str | None, typer.Argument(help="Show prompts of this task.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Say which tasks this model does; with a task, show its prompts for the model's "
            "tokenizer (dense, if left out)."
        ),
    ] = None,
    show: Annotated[int, typer.Option(help="How many prompts of a task to show.")] = 5,
    prompts: Annotated[int, typer.Option(help="Prompts of each task to try a model on.")] = 100,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[
        Path | None, typer.Option(help="CSV file for the table of what a model does.")
    ] = None,
) -> None:
    """List the tasks, say which of them a model does, or show prompts of one."""
    with usage_errors():
        from circuits.models.load import load_model
        from circuits.tasks import find_task, get_task, task_names

        if task is None and model is None:
            table = Table("task", "metric", "what it is", box=SIMPLE_HEAD)
            for column in table.columns[:2]:
                column.no_wrap = True
            for name in task_names():
                table.add_row(name, get_task(name).metric, get_task(name).description)
            out_console.print(table)
            return
        if task is None:
            if prompts < 2:
                raise ValueError(f"--prompts is {prompts}; at least 2 prompts are needed")
            if out is not None:
                check_file(out)
        chosen = None if task is None else find_task(task)
        loaded = load_model(model or "dense", device=device, trust_remote_code=trust_remote_code)
        tokenizer: Any = loaded.tokenizer
        if chosen is not None:
            chosen.draw(tokenizer, show, seed=seed)  # The checks.
    if chosen is None:
        _say_what_it_does(loaded, prompts, seed, out)
        return
    for pair in chosen.pairs(tokenizer, show, seed):
        answers = ", ".join(pair.answers[:3]) + (" ..." if len(pair.answers) > 3 else "")
        out_console.print(f"clean      {pair.clean}", markup=False, highlight=False)
        out_console.print(f"corrupted  {pair.corrupted}", markup=False, highlight=False)
        out_console.print(f"answer     {answers}\n", markup=False, highlight=False)


def _say_what_it_does(model: Model, prompts: int, seed: int, out: Path | None) -> None:
    from circuits.discovery.behaviours import behaviours, behaviours_table
    from circuits.tasks import get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    with progress_bar(len(tasks)) as step:
        found = behaviours(model, tasks, n_prompts=prompts, seed=seed, on_step=step)
    if out is not None:
        write_text(out, behaviours_table(found).to_csv(index=False))
    print_table([_row(behaviour) for behaviour in found])
    for behaviour in found:
        if behaviour.why_not:
            out_console.print(
                f"{behaviour.task}: {behaviour.why_not}", markup=False, soft_wrap=True
            )
    out_console.print(
        "right, top: share of prompts in which the right answer beats the wrong one, and "
        "is the likeliest token. over ablated: the metric minus that with everything ablated, with "
        "its standard error; circuits are a share of it.",
        soft_wrap=True,
    )


def _row(behaviour: Behaviour) -> dict[str, str]:
    """What a model does on behaviour task, as the table shows it."""
    if not behaviour.n_prompts:
        numbers = ["no", "0", "-", "-", f"{behaviour.metric} -", "-"]
    else:
        numbers = [
            "yes" if behaviour.does else "no",
            str(behaviour.n_prompts),
            f"{behaviour.right_beats_wrong:.0%}",
            f"{behaviour.top:.0%}",
            f"{behaviour.metric} {behaviour.full:.2f}",
            f"{behaviour.margin:.2f} +- {behaviour.margin_error:.2f}",
        ]
    return dict(zip(_COLUMNS, [behaviour.task, *numbers], strict=True))
