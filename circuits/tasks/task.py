"""A task: a named source of prompt pairs, the metric that scores them, and the registry.

To add a behaviour, write a function `(tokenizer, n, seed) -> list[PromptPair]` and register it:

    register_task(Task("my_task", "what it asks for", "logit_diff", my_pairs))

`Task.build` draws the pairs, checks them against the tokenizer and splits them in three: the
`ranking` set, on which components are scored; the `sizing` set, on which the size of the circuit is
chosen; and the `reporting` set, on which the chosen circuit is measured. No clean prompt is in two
of them: what chose the circuit does not also say how good it is.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.files import file_name_of
from circuits.metrics import METRICS
from circuits.prompts import PromptPair, Prompts, TooFewPrompts, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PairSource = Callable[["PreTrainedTokenizerBase", int, int], list[PromptPair]]
"""(tokenizer, n, seed) -> n pairs with different clean prompts, the same for the same seed."""


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of one task for one tokenizer.

    Attributes:
        ranking: Prompts on which components are scored.
        sizing: Prompts on which the sizes of circuits are chosen.
        reporting: Prompts on which the circuits are measured.
    """

    ranking: Prompts
    sizing: Prompts
    reporting: Prompts

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, int]] = {}
        for name in ("ranking", "sizing", "reporting"):
            prompts: Prompts = getattr(self, name)
            for template, length in zip(prompts.templates, prompts.lengths.tolist(), strict=True):
                where, other = known.setdefault(template, (name, length))
                if length != other:
                    raise ValueError(
                        f"template {template!r} has prompts of {other} tokens in the {where} set "
                        f"and of {length} in the {name} set; prompts of one template are aligned "
                        "token by token, give the others a template of their own"
                    )


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
        n_sizing: int = 100,
        n_reporting: int = 100,
        seed: int = 0,
    ) -> TaskPrompts:
        """Returns checked ranking, sizing and reporting prompts, the same for the same seed.

        Raises:
            TooFewPrompts: the task has fewer different prompts for this tokenizer.
            ValueError: as for `draw`, or a template whose prompts are not of one length.
        """
        return TaskPrompts(*self.draw(tokenizer, n_ranking, n_sizing, n_reporting, seed=seed))

    def draw(
        self, tokenizer: PreTrainedTokenizerBase, *sizes: int, seed: int = 0
    ) -> tuple[Prompts, ...]:
        """Returns checked sets of prompts of these sizes, the same for the same seed.

        Raises:
            TooFewPrompts: the task has fewer different prompts for this tokenizer.
            ValueError: a size under 1, or pairs that `tokenize_pairs` refuses.
        """
        asked = " + ".join(map(str, sizes))
        if min(sizes) < 1:
            raise ValueError(f"asked for {asked} prompts; every set must have at least 1")
        wanted = sum(sizes)
        pairs = self.pairs(tokenizer, wanted, seed)
        different = len({pair.clean for pair in pairs})
        if len(pairs) < wanted or different < len(pairs):
            raise TooFewPrompts(
                f"task {self.name!r} gave {len(pairs)} pairs with {different} different clean "
                f"prompts for this tokenizer, {wanted} different ones are needed ({asked}, a set "
                f"each); ask for at most {different // len(sizes)} prompts a set"
            )
        ends = list(itertools.accumulate(sizes))
        return tuple(
            tokenize_pairs(tokenizer, pairs[end - size : end])
            for size, end in zip(sizes, ends, strict=True)
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
            if sum(other is task for other in tasks) > 1:
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
