"""What a user names is found: tasks by name, by file, in Python files."""

import pytest

from circuits.tasks import Task, find_task, find_tasks, get_task

PYTHON = """
from circuits.tasks import PromptPair, Task, register_task

def pairs(tokenizer, n, seed):
    return []

for name in {names}:
    register_task(Task(name, "made in a file", "logit_diff", pairs))
"""


def test_a_task_and_its_name_are_the_same():
    task = get_task("greater_than")
    assert find_task(task) is find_task("greater_than") is find_task("greater-than") is task
    assert find_tasks("ioi") == [get_task("ioi")]
    assert find_tasks(["ioi", task]) == [get_task("ioi"), task]
    with pytest.raises(ValueError, match="no tasks given"):
        find_tasks([])
    with pytest.raises(ValueError, match="given twice"):
        find_tasks(["ioi", get_task("ioi")])


def test_files_of_pairs_are_found_by_their_suffix(tmp_path):
    path = tmp_path / "agreement.csv"
    path.write_text("clean,corrupted,answer,wrong_answer\na,b,c,d\n")
    assert find_task(path).name == find_task(str(path)).name == "agreement"


def test_a_python_file_registers_its_task(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PYTHON.format(names=["found_in_mine"]))
    task = find_task(path)
    assert isinstance(task, Task)
    assert task.name == "found_in_mine"
    assert find_task(str(path)) is task  # a second look does not register it again
    assert find_task(f"{path}:found_in_mine") is task is get_task("found_in_mine")


def test_of_several_tasks_in_a_file_one_is_named(tmp_path):
    path = tmp_path / "several.py"
    path.write_text(PYTHON.format(names=["several_a", "several_b"]))
    assert find_task(f"{path}:several_b").name == "several_b"
    with pytest.raises(ValueError, match="several_a, several_b; say which, as .*several.py:name"):
        find_task(path)
    with pytest.raises(ValueError, match="'several_c' is not among them"):
        find_task(f"{path}:several_c")


def test_a_python_file_without_a_task_is_refused(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="registers no task"):
        find_task(path)
    with pytest.raises(FileNotFoundError, match="no Python file of tasks at"):
        find_task(tmp_path / "absent.py")
