"""What discovery finds in each model for each task: kept on the disk, and several at a time.

A search is one model's for one task. Searches need nothing of each other, so those of small models
run in as many processes as there would be threads (`circuits.forks`). What is found, to the last
bit, is what one process finds that computes with one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from circuits.comparison.parts import (
    KeptParts,
    describe_model,
    identity_of,
    read_parts,
    write_part,
)
from circuits.discovery.find_circuits import discover
from circuits.forks import OnStep, can_fork, run_in_forks
from circuits.results.comparison import ONLY
from circuits.results.discovery import DiscoverConfig, Discovery
from circuits.tasks import Task, TaskPrompts
from circuits.workers import Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model

SMALL = 20_000_000
"""Parameters of a model up to which a process with a thread is taken in place of each thread."""


def processes_for(models: Collection[Model], workers: Workers, processes: int | None = None) -> int:
    """Returns how many searches run at a time.

    Left to choose (None), these are as many as PyTorch has threads, where all models are small and
    on a CPU of Linux and no launcher has started several processes; else one.

    Raises:
        ValueError: more than one is asked for where there can only be one.
    """
    devices = {model.W_E.device.type for model in models}
    if workers.count > 1:
        why = "a launcher has started this one, whose processes share the prompts already"
    elif devices != {"cpu"}:
        why = f"the models are on {', '.join(sorted(devices))}, which a fork cannot use"
    elif not can_fork():
        why = "only on Linux can a fork compute"
    else:
        why = ""
    if processes is None:
        sizes = [sum(weight.numel() for weight in model.parameters()) for model in models]
        return 1 if why or max(sizes) > SMALL else torch.get_num_threads()
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    if processes > 1 and why:
        raise ValueError(f"processes is {processes}, but {why}; leave it out or give 1")
    return processes


def search_all(
    wanted: Sequence[tuple[Task, str]],
    models: Mapping[str, Model],
    prompts: Mapping[str, Mapping[str, TaskPrompts]],
    config: DiscoverConfig,
    *,
    workers: Workers,
    processes: int,
    parts: str | Path | None,
    on_kept: Callable[[KeptParts], None],
    on_step: OnStep,
) -> tuple[dict[str, dict[str, Discovery]], KeptParts]:
    """Returns what is found, by task and model, and what of it was kept from an earlier call.

    Args:
        wanted: The tasks and the names of the models to search.
        models: The models by name.
        prompts: Their prompts, by task and model.
        config: How circuits are looked for.
        workers: The processes that share the prompts.
        processes: How many searches run at a time, from `processes_for`.
        parts: A folder for finished searches, as `circuits.comparison.parts` says.
        on_kept: Called once with what was kept in `parts`, before anything is searched.
        on_step: Called with a few words after each forward run.

    Raises:
        ValueError: as `circuits.discovery.find_circuits.discover`, with the model and the task.
    """
    identities, kept = {}, KeptParts()
    if parts is not None:
        described = {side: describe_model(model) for side, model in models.items()}
        identities = {
            (task.name, side): identity_of(
                described[side], task, prompts[task.name][side], config, workers
            )
            for task, side in wanted
        }
        # One process reads, so that all of them search for the same.
        kept = workers.agree(read_parts(parts, identities) if workers.is_first else None)
        on_kept(kept)
    left = [(task, side) for task, side in wanted if (task.name, side) not in kept.discoveries]

    def keep(number: int, result: tuple[Discovery, float]) -> None:
        if parts is not None and workers.is_first:
            task, side = left[number]
            key = (task.name, side)
            write_part(parts, key, identities[key], *result)

    results = run_in_forks(
        [
            partial(_search, side, models[side], task, config, prompts[task.name][side], workers)
            for task, side in left
        ],
        min(processes, len(left)) or 1,
        on_step=on_step,
        on_result=keep,
    )
    discoveries = dict(kept.discoveries)
    discoveries |= {
        (task.name, side): discovery
        for (task, side), (discovery, _) in zip(left, results, strict=True)
    }
    by_task: dict[str, dict[str, Discovery]] = {}
    for task, side in wanted:
        by_task.setdefault(task.name, {})[side] = discoveries[task.name, side]
    return by_task, kept


def _search(
    side: str,
    model: Model,
    task: Task,
    config: DiscoverConfig,
    prompts: TaskPrompts,
    workers: Workers,
    on_step: OnStep,
) -> tuple[Discovery, float]:
    """What is found for a task in a model, and in how many seconds."""

    def step(what: str) -> None:
        on_step(f"{side} {what}")

    started = time.perf_counter()
    try:
        discovery = discover(model, task, config, prompts=prompts, workers=workers, on_step=step)
    except ValueError as error:
        raise ValueError(f"{who(side)}task {task.name}: {error}") from error
    return discovery, time.perf_counter() - started


def who(side: str) -> str:
    """Returns the model as an error begins with it: a model alone has no need of a name."""
    return "" if side == ONLY else f"{side} model, "
