"""What of the package is checked while its tests run."""

from typing import Any

import jaxtyping
import pytest
import torch

from circuits.gate.gate import gate_bias
from circuits.metrics import logit_diff
from tests.helpers import make_prompts


def test_shapes_and_types_in_annotations_are_checked(tiny_model):
    prompts = make_prompts(tiny_model)
    with pytest.raises(jaxtyping.TypeCheckError, match="logits"):
        logit_diff(torch.zeros(len(prompts)), prompts, torch.zeros(len(prompts), 30))
    name: Any = "dense"
    with pytest.raises(jaxtyping.TypeCheckError, match="model"):
        gate_bias(name)


def test_functions_inside_others_are_left_as_they_are():
    def typechecker(_function):
        raise AssertionError("it would be compiled anew at every call")

    def hook(act: int) -> int:
        return act

    assert jaxtyping.jaxtyped(typechecker=typechecker)(hook) is hook
