"""Which behaviours a model shows, before anyone looks for their circuits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import pandas as pd

from circuits.intervene.experiment import CannotDoTask, check_does_task, prepare_experiment
from circuits.metrics import accuracy, beats_wrong
from circuits.models.load import tokenizer_of
from circuits.prompts import TooFewPrompts
from circuits.tasks import Task

if TYPE_CHECKING:
    from circuits.models.backend import Model

_LEAST_SHARE = 0.5  # of the prompts, in which the right answer must beat the wrong one


@dataclass(frozen=True)
class Behaviour:
    """How well a model does a task, without any circuit.

    Attributes:
        task: The task's name.
        metric: The name of its metric.
        n_prompts: The prompts that it was measured on; 0 where there are none for the model.
        right_beats_wrong: Share of prompts in which the right answers together are likelier than
            the wrong ones.
        top: Share of prompts in which a right answer is the likeliest token of all.
        full: The metric of the model, mean over prompts.
        margin: `full` minus the metric with everything ablated, which circuits are a share of.
        margin_error: Its standard error over prompts.
        does: Whether a circuit can be looked for.
        why_not: Why none can be; empty if one can.
    """

    task: str
    metric: str
    n_prompts: int
    right_beats_wrong: float
    top: float
    full: float
    margin: float
    margin_error: float
    does: bool
    why_not: str


def behaviours(
    model: Model,
    tasks: Sequence[Task],
    *,
    n_prompts: int = 100,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _what: None,
) -> list[Behaviour]:
    """Returns how well a model does each task; what its tokenizer cannot express says why.

    A model does a task if `check_does_task` finds a margin over the run with everything ablated
    (by the corrupted prompts), and the right answer beats the wrong one in more than half of the
    prompts. A task that has fewer prompts for the tokenizer is measured on those that it has.

    Args:
        model: The model, dense or gated; put into evaluation mode.
        tasks: The behaviours.
        n_prompts: Prompts of each.
        seed: Seed of the prompts.
        on_step: Called with the name of each task when it is done.

    Raises:
        ValueError: the model has no tokenizer, or has no edges (see `prepare_experiment`).
    """
    tokenizer_of(model)
    found = []
    for task in tasks:
        found.append(_measured(model, task, n_prompts, seed))
        on_step(task.name)
    return found


def behaviours_table(found: Sequence[Behaviour]) -> pd.DataFrame:
    """Returns one row for each task."""
    return pd.DataFrame(
        [asdict(behaviour) for behaviour in found],
        columns=[field.name for field in fields(Behaviour)],
    )


def _measured(model: Model, task: Task, n_prompts: int, seed: int) -> Behaviour:
    tokenizer = tokenizer_of(model)
    try:
        there = {pair.clean for pair in task.pairs(tokenizer, n_prompts, seed)}
        (prompts,) = task.draw(tokenizer, min(n_prompts, max(2, len(there))), seed=seed)
    except ValueError as error:
        return _not_there(task, error)
    experiment = prepare_experiment(model, prompts, metric=task.metric)
    beats = beats_wrong(experiment.clean_logits, experiment.prompts).float().mean().item()
    gaps = experiment.full - experiment.empty
    try:
        check_does_task(experiment)
        why_not = ""
    except CannotDoTask as error:
        why_not = str(error)
    if not why_not and beats <= _LEAST_SHARE:
        why_not = f"the right answer beats the wrong one in {beats:.0%} of the prompts only"
    return Behaviour(
        task=task.name,
        metric=task.metric,
        n_prompts=len(prompts),
        right_beats_wrong=beats,
        top=accuracy(experiment.clean_logits, experiment.prompts).float().mean().item(),
        full=experiment.full.mean().item(),
        margin=gaps.mean().item(),
        margin_error=gaps.std().item() / len(gaps) ** 0.5,
        does=not why_not,
        why_not=why_not,
    )


def _not_there(task: Task, error: ValueError) -> Behaviour:
    nan = float("nan")
    why = "too few prompts: " if isinstance(error, TooFewPrompts) else ""
    return Behaviour(task.name, task.metric, 0, nan, nan, nan, nan, nan, False, f"{why}{error}")
