"""The constrained loss: values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circuits.sparsify.loss import Multiplier, cross_entropy, distillation_loss, edge_penalty

DENSITIES = torch.tensor([[0.3, 0.1], [0.0, 0.1]])  # layers: 0.2 and 0.05
ALLOWED = torch.full((2, 2), 10)


def test_cross_entropy_is_the_mean_over_next_tokens() -> None:
    # At the first position token 1 has probability 3/4, at the second token 0 has 1/4; the last
    # position predicts nothing.
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [50.0, 0.0]]])
    tokens = torch.tensor([[0, 1, 0]])
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert cross_entropy(logits, tokens).item() == pytest.approx(expected)
    assert tokens.tolist() == [[0, 1, 0]]


def test_distillation_loss_is_the_mean_divergence_from_the_teacher() -> None:
    teacher = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]]])
    logits = torch.zeros(1, 2, 2)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation_loss(logits, teacher).item() == pytest.approx(divergence / 2)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("mean", 0.125),
        ("rms", math.sqrt((0.2**2 + 0.05**2) / 2)),
        ("log", (math.log(0.2) + math.log(0.05)) / 2),
    ],
)
def test_the_edge_penalty_is_as_defined(kind: str, value: float) -> None:
    assert edge_penalty(DENSITIES * ALLOWED, ALLOWED, kind).item() == pytest.approx(value)


@pytest.mark.parametrize(("kind", "ratio"), [("mean", 1.0), ("rms", 4.0), ("log", 0.25)])
def test_the_edge_penalty_weighs_layers_as_it_says(kind: str, ratio: float) -> None:
    expected = (DENSITIES * ALLOWED).requires_grad_()
    edge_penalty(expected, ALLOWED, kind).backward()
    assert expected.grad is not None
    dense, sparse = expected.grad.mean(dim=1).tolist()  # the first layer is four times as dense
    assert dense / sparse == pytest.approx(ratio)


def test_the_mean_penalty_counts_edges_where_layers_allow_different_numbers() -> None:
    expected, allowed = torch.tensor([[30.0], [1.0]]), torch.tensor([[90], [10]])
    assert edge_penalty(expected, allowed).item() == pytest.approx(0.31)


def test_a_layer_without_open_edges_gives_no_nan() -> None:
    expected = torch.zeros(2, 2, requires_grad=True)
    edge_penalty(expected, ALLOWED, "log").backward()
    assert isinstance(expected.grad, Tensor)
    assert expected.grad.isfinite().all()


def test_an_unknown_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="'max' is not 'mean', 'rms' or 'log'"):
        edge_penalty(DENSITIES, ALLOWED, "max")


RULE = {"rate": 2.0, "decay": 0.75, "low": 0.5, "high": 4.0}


def test_lambda_follows_the_running_mean_of_the_violation() -> None:
    first = Multiplier(1.0).updated(0.1, **RULE)
    assert first.value == pytest.approx(math.exp(0.2))
    second = first.updated(-0.3, **RULE)  # 0.75 * 0.1 - 0.25 * 0.3 = 0
    assert second.ema == pytest.approx(0.0)
    assert second.value == pytest.approx(first.value)


def test_lambda_is_clamped_without_overflow() -> None:
    assert Multiplier(1.0).updated(1e6, **RULE).value == pytest.approx(4.0)
    assert Multiplier(1.0).updated(-1e6, **RULE).value == pytest.approx(0.5)


def test_lambda_refuses_a_violation_that_is_no_number() -> None:
    with pytest.raises(FloatingPointError, match="CE - tau is nan"):
        Multiplier(1.0).updated(math.nan, **RULE)
