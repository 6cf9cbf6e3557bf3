"""Every choice has a sentence, and a value that is not a choice is refused in one way."""

from __future__ import annotations

from typing import get_args

import pytest

from circuits import choices
from circuits.attribute import METHODS
from circuits.choices import (
    ATTRIBUTION_METHODS,
    GRANULARITIES,
    METHOD_ALIASES,
    check_choice,
    spelled,
)

KINDS = {
    "granularity": (choices.Granularity, choices.GRANULARITIES),
    "ablation": (choices.Ablation, choices.ABLATIONS),
    "gates": (choices.Gates, choices.GATES),
    "selection": (choices.Selection, choices.SELECTIONS),
    "method": (choices.AttributionMethod, choices.ATTRIBUTION_METHODS),
    "MIB task": (choices.MibTask, choices.MIB_TASKS),
    "MIB level": (choices.MibLevel, choices.MIB_LEVELS),
    "bound": (choices.Bound, choices.BOUNDS),
    "penalty": (choices.EdgePenalty, choices.EDGE_PENALTIES),
    "saved as": (choices.SavedAs, choices.SAVED_AS),
    "targets": (choices.LowRankTargets, choices.LOW_RANK_TARGETS),
    "attention": (choices.AttentionPath, choices.ATTENTION_PATHS),
    "precision": (choices.Precision, choices.PRECISIONS),
}


@pytest.mark.parametrize(("values", "sentences"), KINDS.values(), ids=KINDS)
def test_every_value_has_its_sentence(values, sentences):
    assert tuple(sentences) == get_args(values)
    assert all(text[0].isupper() and text.endswith(".") for text in sentences.values())


@pytest.mark.parametrize("value", ["neuron", "", None, 3, ["head"]], ids=repr)
def test_what_is_not_a_choice_is_refused_with_what_is(value):
    with pytest.raises(ValueError) as raised:
        check_choice("granularity", value, choices.GRANULARITIES)
    expected = f"unknown granularity {value!r}; choose one of head, mlp, edge, attention_edge"
    assert str(raised.value) == expected


def test_a_choice_passes():
    check_choice("granularity", "mlp", choices.GRANULARITIES)


def test_every_method_that_can_be_chosen_is_there():
    assert tuple(METHODS) == tuple(choices.ATTRIBUTION_METHODS)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("edge", "edge"),
        ("Edges", "edge"),
        ("attention-edges", "attention_edge"),
        ("heads", "head"),
        ("nodes", "nodes"),
        ("", ""),
    ],
)
def test_a_choice_may_be_spelled_in_other_ways(given, written):
    assert spelled(given, GRANULARITIES) == written


def test_the_names_of_the_field_stand_for_methods():
    methods = [
        spelled(name, ATTRIBUTION_METHODS, METHOD_ALIASES) for name in ("EAP", "eap-ig", "RelP")
    ]
    assert methods == ["attribution_patching", "integrated_gradients", "relevance_patching"]
    assert set(METHOD_ALIASES.values()) <= set(ATTRIBUTION_METHODS)
