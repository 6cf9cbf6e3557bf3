"""Behaviours as prompt pairs: IOI, greater-than and others, and those that users bring."""

from circuits.prompts import PromptPair, Prompts, TooFewPrompts, tokenize_pairs
from circuits.tasks import brackets, greater_than, induction, ioi, pronoun, subject_verb
from circuits.tasks.find import find_task, find_tasks
from circuits.tasks.from_file import task_from_file
from circuits.tasks.task import (
    Task,
    TaskPrompts,
    check_task_names,
    get_task,
    register_task,
    task_names,
)

for _module in (ioi, greater_than, induction, pronoun, subject_verb, brackets):
    register_task(_module.TASK)
register_task(ioi.SWAP_TASK)

__all__ = [
    "PromptPair",
    "Prompts",
    "Task",
    "TaskPrompts",
    "TooFewPrompts",
    "check_task_names",
    "find_task",
    "find_tasks",
    "get_task",
    "register_task",
    "task_from_file",
    "task_names",
    "tokenize_pairs",
]
