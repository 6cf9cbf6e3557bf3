"""One model on several tasks: what `compare` says about two models, for one alone.

The circuits, what the model's heads attend to, prompts with its attention, its cross-entropy and
density: everything that the report of one model shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from circuits.comparison.gather import gather
from circuits.comparison.parts import KeptParts
from circuits.discovery.find_circuits import method_of
from circuits.discovery.work import work_of_search
from circuits.models.load import as_model
from circuits.results.comparison import ONLY, Comparison
from circuits.results.discovery import DiscoverConfig
from circuits.tasks import Task, find_tasks
from circuits.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from circuits.models.backend import Model


def study(
    model: Model | PreTrainedModel | str | Path,
    tasks: Task | str | Path | Sequence[Task | str | Path],
    config: DiscoverConfig | None = None,
    *,
    text: Int[Tensor, "sequences pos"] | None = None,
    name: str | None = None,
    workers: Workers = ALONE,
    processes: int | None = 1,
    parts: str | Path | None = None,
    on_kept: Callable[[KeptParts], None] = lambda _kept: None,
    on_step: Callable[[str], None] = lambda _what: None,
    **settings: Any,
) -> Comparison:
    """Returns what discovery finds in one model for each task, with what the report shows of it.

    `write_results` writes it as a folder with a report. A task's discovery, as `discover` returns
    it, is `study(...).discoveries[task]["model"]`.

    Args:
        model: The model, as for `circuits.discovery.find_circuits.discover`.
        tasks: The behaviours, or their names or files; one alone need not be in a list.
        config: How circuits are looked for; the defaults if left out.
        text: Held-out token sequences on which cross-entropy and density are measured, as for
            `circuits.comparison.compare_models.compare`.
        name: What to call the model in the results; by default as it was given.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`.
        processes: How many tasks are searched at a time, as for
            `circuits.comparison.compare_models.compare`.
        parts: A folder that keeps what is found for each task as soon as it is found, so that a
            study that was interrupted goes on from there, as for
            `circuits.comparison.compare_models.compare`.
        on_kept: Called once with what was kept in `parts`, before anything is searched.
        on_step: Called with a few words after each forward run.
        settings: Fields of `DiscoverConfig` that differ from `config`, such as `n_prompts=20`.

    A task that the model does not do is left out, and `Comparison.refused` says why.

    Raises:
        CannotDoTask: the model does none of the tasks.
        ValueError: no tasks, bad prompts, or a model whose numbers are not finite.
    """
    config = replace(config or DiscoverConfig(), **settings)
    method_of(config)  # An option that the method lacks is refused before anything is loaded.
    chosen = find_tasks(tasks)
    models: Mapping[str, Model] = {ONLY: as_model(model)}
    shown = name or (str(model) if isinstance(model, str | Path) else ONLY)
    return gather(
        models,
        chosen,
        config,
        names={ONLY: shown},
        text=text,
        workers=workers,
        processes=processes,
        parts=parts,
        on_kept=on_kept,
        on_step=on_step,
    )


def work_of_study(config: DiscoverConfig, n_tasks: int) -> float:
    """Returns about how much work `study` is, in the unit of `circuits.discovery.work`."""
    return 1 + n_tasks * (work_of_search(config) + 1)
