"""A study of one model finds what `discover` and `compare` find in it."""

import pytest

from circuits.comparison.compare_models import compare
from circuits.comparison.study_model import study
from circuits.discovery.find_circuits import discover
from circuits.intervene.experiment import CannotDoTask
from circuits.tasks import Task
from tests.comparison.test_parts import CONFIG, TASK, make_models

pytestmark = pytest.mark.slow


def backwards():
    """The task with right and wrong answers exchanged, which no model that does it does."""

    def pairs(tokenizer, n, seed):
        return [
            type(one)(one.clean, one.corrupted, one.wrong_answers, one.answers, one.template)
            for one in TASK.pairs(tokenizer, n, seed)
        ]

    return Task("backwards", "made up", "logit_diff", pairs)


def test_a_study_holds_what_discover_and_compare_find_in_the_model():
    dense, sparse, _ = make_models()
    found = study(sparse, [TASK, backwards()], CONFIG, name="mine")
    assert found.sides == ("model",)
    assert found.models["model"].name == "mine"
    assert found.discoveries == {"made_up": {"model": discover(sparse, TASK, CONFIG)}}
    assert "the model does not do the task" in found.not_compared()["backwards"]
    pair = compare(dense, sparse, TASK, CONFIG)
    assert found.discoveries["made_up"]["model"] == pair.discoveries["made_up"]["sparse"]
    assert found.models["model"].density == pair.models["sparse"].density
    of_one, of_two = found.examples["made_up"][0], pair.examples["made_up"][0]
    assert of_one.clean == of_two.clean
    assert of_one.patterns["model"] == of_two.patterns["sparse"]
    there = {one.head: one.role for one in pair.roles if one.model == "sparse"}
    assert {one.head: one.role for one in found.roles} == there


def test_a_model_that_does_nothing_is_refused():
    with pytest.raises(CannotDoTask, match="nothing is left to look at; task backwards: the model"):
        study(make_models()[0], backwards(), CONFIG)
