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
    print_frame,
    progress_bar,
    usage_errors,
    with_bounds,
)
from circuits.cli.launch import read_launch
from circuits.cli.options import (
    Device,
    TrustRemoteCode,
)
from circuits.results.discover_config import DiscoverConfig

if TYPE_CHECKING:
    import pandas as pd


@with_config_options
def discover_command(
    config_of: Callable[[], DiscoverConfig],
    model: Annotated[str, typer.Option(help="A model: a name or folder.")] = "dense",
    task: Annotated[str, typer.Option(help="A task's name, or a file as in compare.")] = "ioi",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("discovery.json"),
) -> None:
    """Find the circuits of one model for one task.

    Under accelerate launch or torchrun, several processes share the prompts.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.discovery.find_circuits import discover, method_of, steps_of
        from circuits.files import check_file
        from circuits.models.load import load_model
        from circuits.tasks import find_task
        from circuits.workers import join_workers

        chosen = find_task(task)
        config = config_of()
        method_of(config)  # Refuses an option that the method lacks.
        check_file(out)
        device = launch.own_device(device)
        loaded = load_model(model, device=device, trust_remote_code=trust_remote_code)
        workers = join_workers(loaded.W_E.device)
    err_console.print(f"looking for {chosen.name} in {model} on {device}, seed {config.seed}")
    with progress_bar(steps_of(config)) as step:
        found = discover(loaded, chosen, config, workers=workers, on_step=step)
    if not launch.is_first:
        return
    found.save(out)
    out_console.print(
        f"{chosen.name}: {found.metric} {found.metric_full:.3f} (ablated "
        f"{found.metric_empty:.3f}), accuracy {found.accuracy:.1%} on {found.n_reporting} prompts"
    )
    compact = _compact(found.to_dataframe(), is_pruned=config.prune)
    print_frame(compact, f"Components that recover {config.target:.0%}")
    for line in _legend(found.to_dataframe()):
        out_console.print(line, soft_wrap=True)
    out_console.print(f"written to {out}")


def _compact(table: pd.DataFrame, *, is_pruned: bool) -> pd.DataFrame:
    """The circuits in columns that fit a terminal; the file has all of them."""
    rows: list[Any] = [row for _, row in table.iterrows()]
    prefixes = [with_bounds(row, "prefix", ".4g") for row in rows]
    pruned = [f"{row['size']:.4g}" + ("" if row["minimal"] else "+") for row in rows]
    columns = {
        **({"pruned": pruned} if is_pruned else {}),
        ("before [95 %]" if is_pruned else "size [95 %]"): prefixes,
        "of": table["components"],
        "faithful [95 %]": [with_bounds(row, "faithfulness", ".3f") + _mark(row) for row in rows],
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
    lines = [f"size: 95 % interval over the prompts that it was chosen on (drawn: {drawn})"]
    minimal = [row["minimal"] for row in rows]
    if None not in minimal:
        lines = [
            "pruned: no single component can go without missing the target on the prompts that "
            "chose the size; the interval is of the size before"
        ]
        if not all(minimal):
            lines.append("pruned+: more might go; the bound on the number of trials was reached")
    if len(fresh):
        lines.append(f"faithful: on {fresh[0]} fresh prompts")
    if len(fresh) < len(rows):
        lines.append("faithful*: on the prompts that the circuit was found on; no fresh one has "
                     "their template")  # fmt: skip
    return lines
