"""Names as they are read."""

import pytest

from circuits.names import behaviour_name
from circuits.tasks import task_names


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("subject_verb", "subject-verb agreement"),
        ("greater_than", "greater than"),
        ("my_one", "my one"),
    ],
)
def test_a_behaviour_has_a_name_that_can_be_read(task, name):
    assert behaviour_name(task) == name


def test_no_name_of_a_behaviour_of_the_package_has_underscores_or_is_anothers():
    names = [behaviour_name(task) for task in task_names()]
    assert not any("_" in name for name in names)
    assert len(set(names)) == len(names)
