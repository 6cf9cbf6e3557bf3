"""`circuits discover`: the circuits of one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.config_options import with_config_options
from circuits.cli.console import (
    err_console,
    out_console,
    print_table,
    progress_bar,
    usage_errors,
    with_bounds,
)
from circuits.cli.kept_parts import Resume, parts_of, telling, told_of_parts
from circuits.cli.launch import read_launch
from circuits.cli.options import Device, Processes, Tasks, TrustRemoteCode, in_processes
from circuits.numbers import percent, sized
from circuits.results.discover_config import DiscoverConfig

if TYPE_CHECKING:
    import pandas as pd

    from circuits.results.comparison import Comparison
    from circuits.results.discovery import Discovery


@with_config_options
def discover_command(
    config_of: Callable[[], DiscoverConfig],
    model: Annotated[str, typer.Option(help="A model: a name or folder.")] = "dense",
    task: Tasks = None,
    device: Device = "cpu",
    processes: Processes = None,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[
        Path,
        typer.Option(
            help="A .json file to write, for one task; or a folder for tables, circuits, figures "
            "and a report."
        ),
    ] = Path("discovery.json"),
    resume: Resume = False,
) -> None:
    """Find the circuits of one model.

    Under accelerate launch or torchrun, several processes share the prompts.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.comparison.parts import remove_parts
        from circuits.comparison.searches import processes_for
        from circuits.comparison.study_model import study, work_of_study
        from circuits.discovery.find_circuits import discover, method_of
        from circuits.discovery.work import work_of_search, work_of_step
        from circuits.files import check_file
        from circuits.models.load import load_model
        from circuits.report import check_writable, write_results
        from circuits.tasks import find_tasks
        from circuits.workers import join_workers

        tasks = find_tasks(task or ["ioi"])
        config = config_of()
        method_of(config)  # Refuses an option that the method lacks.
        is_file = out.suffix == ".json" and not out.is_dir()
        if not is_file:
            check_writable(out)
        elif resume:
            raise ValueError(
                f"--out is {out}, and a file has no parts to go on from (--resume); give a folder"
            )
        elif len(tasks) > 1:
            raise ValueError(
                f"--out is {out}, a file for one task, and there are {len(tasks)}; give a folder"
            )
        else:
            check_file(out)
        parts = None if is_file else parts_of(out, resume)
        device = launch.own_device(device)
        loaded = load_model(model, device=device, trust_remote_code=trust_remote_code)
        workers = join_workers(loaded.W_E.device)
        processes = min(processes_for([loaded], workers, processes), len(tasks))
    names = ", ".join(task.name for task in tasks)
    err_console.print(
        f"looking for {names} in {model} on {device}{in_processes(processes)}, seed {config.seed}"
    )
    if parts is None:
        with progress_bar(work_of_search(config), work_of_step) as step:
            found = discover(loaded, tasks[0], config, workers=workers, on_step=step)
        if launch.is_first:
            found.save(out)
            tell_of_discovery(found)
            out_console.print(f"written to {out}")
        return
    work = work_of_study(config, len(tasks))
    with told_of_parts(parts), progress_bar(work, work_of_step) as step:
        results = study(
            loaded,
            tasks,
            config,
            name=model,
            workers=workers,
            processes=processes,
            parts=parts,
            on_kept=telling(step, work_of_search(config), parts, resume=resume),
            on_step=step,
        )
    if not launch.is_first:
        return
    results.run.update(launch.described())
    with told_of_parts(parts):
        write_results(results, out)
    remove_parts(parts)
    _tell_of_study(results)
    out_console.print(f"{results.run['seconds']} s. Open {out / 'report.html'}", soft_wrap=True)


def _tell_of_study(results: Comparison) -> None:
    from circuits.report import warnings_of

    for found in results.discoveries.values():
        tell_of_discovery(found["model"])
    for name, why in results.not_compared().items():
        out_console.print(f"{name} has no circuit. {why}", markup=False, soft_wrap=True)
    for warning in warnings_of(results):
        out_console.print(warning, markup=False, soft_wrap=True)


def tell_of_discovery(found: Discovery) -> None:
    """Prints what was found for a task, in columns that fit a terminal."""
    out_console.print(
        f"{found.task}: {found.metric} {found.metric_full:.3f} (ablated "
        f"{found.metric_empty:.3f}), accuracy {percent(found.accuracy)} on "
        f"{found.n_reporting} prompts",
        markup=False,
    )
    table = found.to_dataframe()
    compact = _compact(table, is_pruned=found.config.prune)
    print_table(
        compact.to_dict("records"), f"Components that recover {percent(found.config.target, 4)}"
    )
    for line in _legend(table):
        out_console.print(line, soft_wrap=True)


def _compact(table: pd.DataFrame, *, is_pruned: bool) -> pd.DataFrame:
    """The circuits in columns that fit a terminal; the file has all of them."""
    rows: list[Any] = [row for _, row in table.iterrows()]
    marks = ["+" if row["minimal"] is False else "" for row in rows]
    columns = {
        ("pruned [95 %]" if is_pruned else "size [95 %]"): [
            with_bounds(row, "size", sized) + mark for row, mark in zip(rows, marks, strict=True)
        ],
        **({"before": table["prefix"]} if is_pruned else {}),
        "of": table["components"],
        "faithful [95 %]": [
            with_bounds(row, "faithfulness", "{:.3f}".format) + _mark(row) for row in rows
        ],
        "random": table["random_same_size"],
    }
    return table[["granularity"]].assign(**columns)


def _mark(row: Any) -> str:
    return "" if row["measured_on"] == "reporting" else "*"


def _legend(table: pd.DataFrame) -> list[str]:
    """Which prompts the columns speak of."""
    rows: list[Any] = [row for _, row in table.iterrows()]
    fresh = [int(row["prompts"]) for row in rows if row["measured_on"] == "reporting"]
    drawn = " / ".join(dict.fromkeys(table["interval"]))
    lines = [f"size: 95 % interval over the prompts to rank and to size on (drawn: {drawn})"]
    minimal = [row["minimal"] for row in rows]
    if None not in minimal:
        lines = [
            "pruned: no single component can go without missing the target on the prompts that "
            f"chose the size; 95 % interval over these and those that ranked (drawn: {drawn})"
        ]
        if not all(minimal):
            lines.append("pruned+: more might go; the bound on the number of trials was reached")
    if len(fresh):
        lines.append(f"faithful: on {fresh[0]} fresh prompts")
    if len(fresh) < len(rows):
        lines.append("faithful*: on the prompts that the circuit was found on; no fresh one has "
                     "their template")  # fmt: skip
    return lines
