"""From what a user names to a task: a registered name, a file of prompt pairs, a Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from circuits.reading import is_there
from circuits.tasks.from_file import task_from_file
from circuits.tasks.mib import PREFIX, mib_task
from circuits.tasks.task import Task, check_task_names, get_task, task_names


def find_task(task: Task | str | Path) -> Task:
    """Returns the task that is named.

    Args:
        task: A task as it is; a registered name (`greater-than` is `greater_than`); a path to a
            .csv or .jsonl file of prompt pairs; a path to a .py file that registers one task, or
            several and then `path.py:name`; or a task of the MIB benchmark, as `mib:ioi` from the
            hub or `mib:ioi:rows.jsonl` from a file or folder (see `circuits.tasks.mib`).

    Raises:
        ValueError: an unknown name, a file that cannot be read, or a Python file that registers no
            such task.
        FileNotFoundError: there is no such file.
    """
    if isinstance(task, Task):
        return task
    text = str(task)
    if text.startswith(PREFIX):
        name, _, data = text.removeprefix(PREFIX).partition(":")
        return mib_task(name, data=data or None)
    path, _, name = text.rpartition(":") if ".py:" in text else (text, "", "")
    if path.endswith(".py"):
        return _task_from_python(Path(path), name)
    if text.endswith((".csv", ".jsonl")):
        return task_from_file(text)
    return get_task(text.replace("-", "_"))


def find_tasks(tasks: Task | str | Path | Iterable[Task | str | Path]) -> list[Task]:
    """Returns the tasks that are named; one alone need not be in a list.

    Raises:
        ValueError: none is given, two would share a name, or as `find_task`.
        FileNotFoundError: there is no such file.
    """
    several = [tasks] if isinstance(tasks, Task | str | Path) else list(tasks)
    if not several:
        raise ValueError("no tasks given; name at least one, such as 'ioi'")
    found = [find_task(task) for task in several]
    check_task_names(found)
    return found


_RUN: dict[Path, list[str]] = {}
"""The tasks that each Python file registered: a file is run once, as a module is."""


def _task_from_python(path: Path, name: str) -> Task:
    if not is_there(path):
        raise FileNotFoundError(f"no Python file of tasks at {path}")
    place = path.resolve()
    if place not in _RUN:
        before = task_names()
        spec = importlib.util.spec_from_file_location(f"circuits_task_{path.stem}", place)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} cannot be read as a Python file")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        _RUN[place] = [known for known in task_names() if known not in before]
    known = _RUN[place]
    if name and name in known:
        return get_task(name)
    if not name and len(known) == 1:
        return get_task(known[0])
    listed = ", ".join(known) or "none"
    raise ValueError(
        f"{path} registers the tasks: {listed}; "
        + (f"{name!r} is not among them" if name else f"say which, as {path}:name")
        if known
        else f"{path} registers no task; let it call circuits.register_task(Task(...))"
    )
