"""`circuits discover`: the circuits of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.console import err_console, out_console, print_frame, progress_bar, usage_errors
from circuits.cli.launch import read_launch
from circuits.cli.options import (
    AblationName,
    Device,
    Granularities,
    Method,
    NPrompts,
    Seed,
    SelectionName,
    Target,
    discover_config,
    read_task,
)


def discover_command(
    model: Annotated[str, typer.Option(help="A model: a name or folder.")] = "dense",
    task: Annotated[str, typer.Option(help="A task's name, or a file of prompt pairs.")] = "ioi",
    target: Target = 0.9,
    granularity: Granularities = None,
    method: Method = "attribution_patching",
    selection: SelectionName = "absolute",
    ablation: AblationName = "corrupted",
    prompts: NPrompts = 100,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("discovery.json"),
) -> None:
    """Find the circuits of one model for one task.

    Under accelerate launch or torchrun, several processes share the prompts.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.files import check_file
        from circuits.find_circuits import discover, steps_of
        from circuits.models import load_model
        from circuits.workers import join_workers, share_prompts

        chosen = read_task(task)
        config = discover_config(target, granularity, method, selection, ablation, prompts, seed)
        check_file(out)
        device = launch.own_device(device)
        loaded = load_model(model, device=device)
        workers = join_workers(loaded.W_E.device)
    err_console.print(f"looking for {chosen.name} in {model} on {device}, seed {seed}")
    with progress_bar(steps_of(config)) as step, share_prompts(workers):
        found = discover(loaded, chosen, config, on_step=step)
    if not launch.is_first:
        return
    found.save(out)
    shown = {
        "size_low": "low",
        "size_high": "high",
        "components": "of",
        "random_same_size": "random",
    }
    table = found.to_dataframe().drop(columns="rest").rename(columns=shown)
    out_console.print(
        f"{chosen.name}: {found.metric} {found.metric_full:.3f} (ablated "
        f"{found.metric_empty:.3f}), accuracy {found.accuracy:.1%} on {found.n_heldout} prompts"
    )
    print_frame(table, f"Components that recover {target:.0%}")
    out_console.print(f"written to {out}")
