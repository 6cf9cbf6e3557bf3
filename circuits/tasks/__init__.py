"""Behaviours as prompt pairs: IOI, greater-than and others, and those that users bring."""

from circuits.tasks import greater_than, induction, ioi, pronoun
from circuits.tasks.from_file import task_from_file
from circuits.tasks.prompts import PromptPair, Prompts, tokenize_pairs
from circuits.tasks.task import Task, TaskPrompts, get_task, register_task, task_names

for _task in (ioi.TASK, ioi.SWAP_TASK, greater_than.TASK, induction.TASK, pronoun.TASK):
    register_task(_task)

__all__ = [
    "PromptPair",
    "Prompts",
    "Task",
    "TaskPrompts",
    "get_task",
    "register_task",
    "task_from_file",
    "task_names",
    "tokenize_pairs",
]
