"""The embedded pair of a fetched model: what can be said without its base, and with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.cli import main
from circuits.gate.card import find_gate_card
from circuits.gate.density import measure_density
from circuits.models import load_model, names
from circuits.models.adapter import base_of, read_adapter
from circuits.models.fetch import fetch_model
from circuits.models.info import model_info
from circuits.models.load import tokenizer_of
from circuits.models.names import EMBEDDED_ADAPTERS, FETCHED, find_folder
from tests.helpers import folder_of

MATRICES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
each_adapter = pytest.mark.parametrize("name", EMBEDDED_ADAPTERS)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of fetched models."""
    monkeypatch.setattr(names, "user_cache_path", lambda name: tmp_path / name)


@each_adapter
def test_an_embedded_adapter_is_whole_and_knows_its_base(name):
    folder = find_folder(name)
    assert folder is not None
    adapter, base = read_adapter(folder), EMBEDDED_ADAPTERS[name]
    assert base_of(folder) == base  # its name, and no path of the machine that made it
    assert adapter.digest == FETCHED[base].weights_sha256
    assert set(adapter.targets or ()) == set(MATRICES)
    assert {tuple(key.split(".")[i] for i in (2, 4)) for key in adapter.factors} == {
        (str(layer), matrix) for layer in range(30) for matrix in MATRICES
    }
    assert all(
        factors.b.isfinite().all() and factors.b.any() for factors in adapter.factors.values()
    )


def test_the_twin_has_a_gate_that_keeps_its_bound_and_the_control_has_none():
    cards: list[Any] = [find_gate_card(folder_of(name)) for name in EMBEDDED_ADAPTERS]
    twin, control = cards
    assert control is None
    assert twin is not None
    assert twin.satisfied
    assert twin.kl <= twin.epsilon
    assert twin.density["overall"] <= 0.1


@pytest.mark.usefixtures("no_cache")
@each_adapter
def test_without_its_base_the_error_says_how_to_get_it(name):
    for call in (load_model, model_info):
        with pytest.raises(
            FileNotFoundError, match="'smollm2' .*`circuits models get smollm2` once"
        ):
            call(name)


@pytest.mark.usefixtures("no_cache")
def test_models_without_the_base_lists_what_can_be_loaded(capsys):
    assert main(["models"]) == 0
    table, _, lines = capsys.readouterr().out.partition("smollm2: ")
    assert "code-sparse" in table
    assert "smollm2" not in table
    assert "`circuits models get smollm2`" in lines
    assert "smollm2-sparse and smollm2-control are adapters of it" in lines


def test_another_base_is_refused():
    with pytest.raises(ValueError, match="does not fit its base model"):
        load_model("smollm2-control", base="dense")


@pytest.mark.network
@pytest.mark.usefixtures("no_cache")
def test_both_load_on_the_fetched_base():
    said: list[str] = []
    try:
        fetch_model("smollm2", said.append)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert not any("other weights" in line for line in said)
    dense = load_model("smollm2")
    tokens = dense.to_tokens("When Mary and John went to the store, John gave a drink to")
    with torch.no_grad():
        reference = dense(tokens).log_softmax(dim=-1)
        for name in EMBEDDED_ADAPTERS:
            model = load_model(name)
            logits = model(tokens).log_softmax(dim=-1)
            kl = (reference.exp() * (reference - logits)).sum(dim=-1).mean()
            # Nothing holds the control to the dense model.
            assert 0.001 < kl < (0.5 if name == "smollm2-sparse" else 4)
            assert tokenizer_of(model).decode(logits[0, -1].argmax()) == " Mary"
            if name == "smollm2-sparse":
                assert 0 < measure_density(model, tokens).overall < 0.9
