"""A task: a named source of prompt pairs, the metric that scores them, and the registry.

To add a behaviour, write a function `(tokenizer, n, seed) -> list[PromptPair]` and register it:

    register_task(Task("my_task", "what it asks for", "logit_diff", my_pairs))

`Task.build` draws the pairs, checks them against the tokenizer and splits them in two: the
`ranking` set, on which components are scored, and the `heldout` set, on which every reported
figure is measured. No clean prompt is in both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.files import file_name_of
from circuits.metrics import METRICS
from circuits.tasks.prompts import PromptPair, Prompts, TooFewPrompts, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PairSource = Callable[["PreTrainedTokenizerBase", int, int], list[PromptPair]]
"""(tokenizer, n, seed) -> n pairs with different clean prompts, the same for the same seed."""


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of one task for one tokenizer.

    Attributes:
        ranking: Prompts on which components are scored.
        heldout: Prompts on which circuits are evaluated; none of them is in `ranking`.
    """

    ranking: Prompts
    heldout: Prompts


@dataclass(frozen=True)
class Task:
    """A behaviour with its prompts and its metric.

    Attributes:
        name: The name in the registry, in files and on the command line.
        description: One line for people.
        metric: A name in `circuits.metrics.METRICS`.
        pairs: Draws prompt pairs for a tokenizer.
    """

    name: str
    description: str
    metric: str
    pairs: PairSource

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(
                f"task {self.name!r} has the metric {self.metric!r}; choose one of "
                f"{', '.join(sorted(METRICS))}"
            )

    def build(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        n_ranking: int = 100,
        n_heldout: int = 100,
        seed: int = 0,
    ) -> TaskPrompts:
        """Returns checked ranking and held-out prompts, the same for the same seed.

        Raises:
            TooFewPrompts: the task has fewer different prompts for this tokenizer.
            ValueError: sizes under 1, or pairs that `tokenize_pairs` refuses.
        """
        if min(n_ranking, n_heldout) < 1:
            raise ValueError(
                f"asked for {n_ranking} ranking and {n_heldout} held-out prompts; "
                "both must be at least 1"
            )
        wanted = n_ranking + n_heldout
        pairs = self.pairs(tokenizer, wanted, seed)
        different = len({pair.clean for pair in pairs})
        if len(pairs) < wanted or different < len(pairs):
            raise TooFewPrompts(
                f"task {self.name!r} gave {len(pairs)} pairs with {different} different clean "
                f"prompts for this tokenizer, {wanted} different ones are needed; "
                "ask for fewer prompts"
            )
        return TaskPrompts(
            ranking=tokenize_pairs(tokenizer, pairs[:n_ranking]),
            heldout=tokenize_pairs(tokenizer, pairs[n_ranking:wanted]),
        )


_REGISTRY: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Adds `task` to the registry and returns it.

    Raises:
        ValueError: another task already has that name.
    """
    if _REGISTRY.get(task.name, task) is not task:
        raise ValueError(f"a task named {task.name!r} is already registered; choose another name")
    _REGISTRY[task.name] = task
    return task


def get_task(name: str) -> Task:
    """Returns the registered task of that name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown task {name!r}; registered tasks are {', '.join(task_names())}, "
            f"and a path to a .csv or .jsonl file of prompt pairs works as well.{hint}"
        )
    return _REGISTRY[name]


def check_task_names(tasks: Sequence[Task]) -> None:
    """Refuses tasks whose results could not be told apart, by their names or in files' names.

    Raises:
        ValueError: a task is given twice, or two have names that are one as a file's name.
    """
    taken: dict[str, Task] = {}
    for task in tasks:
        other = taken.setdefault(file_name_of(task.name), task)
        if other is task:
            if sum(one is task for one in tasks) > 1:
                raise ValueError(f"the task {task.name!r} is given twice; give it once")
            continue
        raise ValueError(
            f"the results of two tasks would be called {file_name_of(task.name)!r}: "
            f"{other.name!r} ({other.description}) and {task.name!r} ({task.description}); give "
            "one of them another name"
        )


def task_names() -> list[str]:
    """Returns the names of all registered tasks, in order of registration."""
    return list(_REGISTRY)
