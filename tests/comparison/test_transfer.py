import pytest

from circuits.comparison.transfer import transfer
from circuits.discovery.find_circuits import discover
from circuits.discovery.hand_built import induction
from circuits.results.discovery import DiscoverConfig
from tests.helpers import skip_file_without_hooked_transformer

skip_file_without_hooked_transformer()


@pytest.fixture(scope="module")
def built():
    return induction()


def rows_of(built, other_model):
    config = DiscoverConfig(granularities=("head", "edge"))
    models = {"dense": built.model, "sparse": other_model}
    prompts = built.prompts(16)
    found = {"dense": discover(built.model, built.task, config, prompts=prompts)}
    found["sparse"] = found["dense"]
    reporting = dict.fromkeys(models, prompts.reporting)
    return transfer(models, reporting, built.task, found)


def test_a_circuit_does_in_the_same_model_what_it_did(built):
    rows = rows_of(built, built.model)
    assert [(row.granularity, row.found_in, row.run_in) for row in rows] == [
        ("head", "dense", "sparse"),
        ("edge", "dense", "sparse"),
        ("head", "sparse", "dense"),
        ("edge", "sparse", "dense"),
    ]
    for row in rows:
        assert row.faithfulness == pytest.approx(row.own, abs=1e-5)
        assert row.faithfulness >= 0.9


def test_a_random_circuit_of_edges_does_far_worse(built):
    for row in rows_of(built, built.model):
        if row.granularity == "edge":
            assert row.random < 0.5


def test_a_circuit_fails_in_a_model_that_does_the_task_elsewhere(built):
    turned = induction().model
    # The two layers' heads change places within their layer: the same function, other names.
    for block in turned.blocks:
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            parameter = getattr(block.attn, name)
            parameter.data.copy_(parameter.data.flip(0))
    there = next(row for row in rows_of(built, turned) if row.run_in == "sparse")
    assert there.faithfulness < 0.5 < there.own
