"""The main job: a dense model and its sparse twin on the same tasks, prompts, method and target.

`compare` runs discovery on both models and measures how good they are on plain text, so that
"simpler" is never bought with "worse" unseen. It returns a `Comparison`: plain values from which
tables, figures and the report are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from circuits.comparison.gather import gather
from circuits.comparison.parts import (
    KeptParts,
)
from circuits.discovery.work import work_of_search
from circuits.files import file_name_of
from circuits.models.load import as_model
from circuits.results.comparison import SIDES, Comparison
from circuits.results.discovery import DiscoverConfig
from circuits.tasks import Task, find_tasks
from circuits.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from circuits.models.backend import Model

    AnyModel = Model | PreTrainedModel | str | Path
    AnyTask = Task | str | Path

N_SEQUENCES = 64
CONTEXT = 128


def compare(
    dense: AnyModel,
    sparse: AnyModel,
    tasks: AnyTask | Sequence[AnyTask],
    config: DiscoverConfig | None = None,
    *,
    text: Int[Tensor, "sequences pos"] | Mapping[str, Tensor] | None = None,
    names: tuple[str, str] | None = None,
    others: Mapping[str, AnyModel] | None = None,
    twins: Sequence[str] = (),
    workers: Workers = ALONE,
    processes: int | None = 1,
    parts: str | Path | None = None,
    on_kept: Callable[[KeptParts], None] = lambda _kept: None,
    on_step: Callable[[str], None] = lambda _what: None,
    **settings: Any,
) -> Comparison:
    """Returns what discovery finds in both models, and how good and how sparse they are.

    The pair's circuits are also run in each other's model, and the roles of its heads measured.

    Args:
        dense: The dense model. A name, a folder or a Hugging Face model is loaded as
            `circuits.models.load.as_model` says.
        sparse: Its sparse twin (any model: the names only say which side it stands on).
        tasks: The behaviours, or their names or files; one alone need not be in a list.
        config: How circuits are looked for; the defaults if left out.
        text: Held-out token sequences on which cross-entropy and density are measured: of all
            models, if they share a tokenizer, or by model ("dense", "sparse" and the names of
            `others`), each in its own tokens. Without them the synthetic corpus serves models that
            know its words; for others cross-entropy stays unknown, and density is measured on the
            tasks' prompts.
        names: What to call the two models in the results; by default as they were given, or
            "dense" and "sparse".
        others: More models by name, such as controls and further twins. A task that one of them
            cannot do is noted, not an error.
        twins: Which of the others are sparse twins too, from other training seeds: ratios then
            also have a mean and an interval over seeds.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`; all
            of them make the same call and get the same comparison.
        processes: How many searches (of one model for one task) run at a time, each in a fork of
            this process with one thread, on a CPU under Linux. None chooses, as
            `circuits.comparison.searches.processes_for` says. What is found is what one process
            with one thread finds, unless a method of your own draws from the global random state.
        parts: A folder that keeps what is found in each model for each task as soon as it is
            found, as `circuits.comparison.parts` says. What lies there of an earlier call and fits
            is not searched again. The caller removes it (`remove_parts`) when nothing more can be
            lost.
        on_kept: Called once with what was kept in `parts`, before anything is searched.
        on_step: Called with a few words after each forward run.
        settings: Fields of `DiscoverConfig` that differ from `config`, such as `n_prompts=20`.

    All models and tasks are checked before anything long is run. A task that one of the pair does
    not do is left out, and `Comparison.refused` says why. Where the pair's tokenizers differ, heads
    are not matched by where they attend and no prompt is shown, as the tokens are not the same.

    Raises:
        CannotDoTask: no task is left that both models of the pair do.
        ValueError: no tasks, bad prompts, a name twice, a twin that is not among the others, text
            in one tokenizer's tokens for models of several, several processes where there can only
            be one, or a model whose numbers are not finite.
    """
    config = replace(config or DiscoverConfig(), **settings)
    tasks = find_tasks(tasks)
    given = _named(dense, sparse, others or {})
    models = {side: as_model(one) for side, one in given.items()}
    unknown = [name for name in twins if name not in (others or {})]
    if unknown:
        raise ValueError(f"the twin {unknown[0]!r} is not among the other models")
    return gather(
        models,
        tasks,
        config,
        names=dict(zip(SIDES, names or _labels(given), strict=True)),
        twins=twins,
        text=text,
        workers=workers,
        processes=processes,
        parts=parts,
        on_kept=on_kept,
        on_step=on_step,
    )


def work_of_compare(config: DiscoverConfig, n_tasks: int, n_others: int = 0) -> float:
    """Returns about how much work `compare` is, in the unit of `circuits.discovery.work`."""
    return (2 + n_others) * (n_tasks * work_of_search(config) + 1) + n_tasks


def check_model_names(names: Iterable[str]) -> None:
    """Refuses names of further models whose results could not be told apart in files' names.

    Raises:
        ValueError: a name is empty, that of one of the pair, or one with another as a file's name.
    """
    taken = {side: side for side in SIDES}
    for name in names:
        # Without dots, the parts of `task.model.granularity.json` can be told apart.
        other = taken.setdefault(file_name_of(name).replace(".", "_"), name)
        if not name or name in SIDES:
            raise ValueError(
                f"another model cannot be called {name!r}; {' and '.join(SIDES)} are the pair"
            )
        if other != name:
            raise ValueError(
                f"the models {other!r} and {name!r} would have the same files; give one of them "
                "another name"
            )


def _named(
    dense: AnyModel, sparse: AnyModel, others: Mapping[str, AnyModel]
) -> dict[str, AnyModel]:
    check_model_names(others)
    return {"dense": dense, "sparse": sparse, **others}


def _labels(given: Mapping[str, AnyModel]) -> tuple[str, ...]:
    """The names and folders that the pair was given as; the side of what was given as a model."""
    return tuple(str(given[side]) if isinstance(given[side], str | Path) else side
                 for side in SIDES)  # fmt: skip
