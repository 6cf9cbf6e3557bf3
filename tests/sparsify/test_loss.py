"""The constrained loss: values worked by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.sparsify import loss as loss_module
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 64, 2**20])
def test_a_divergence_and_its_gradient_are_those_of_autograd(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_VALUES_AT_ONCE", {True: at_once, False: at_once})
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (
        (3 * torch.randn(2, 5, 23, generator=generator)).to(dtype).requires_grad_() for _ in "ab"
    )
    expected = F.kl_div(
        logits.float().log_softmax(-1), teacher.float().log_softmax(-1), log_target=True,
        reduction="sum",
    ) / 10  # fmt: skip
    (gradient,) = torch.autograd.grad(3 * expected, logits)

    found = distillation_loss(logits, teacher)
    (3 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.grad is not None and logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, gradient, atol=1e-6, rtol=0.02)
    assert teacher.grad is None


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
    with pytest.raises(
        ValueError, match="unknown edge penalty 'max'; choose one of mean, rms, log"
    ):
        edge_penalty(DENSITIES, ALLOWED, "max")


RULE: dict[str, Any] = {"rate": 2.0, "decay": 0.75, "low": 0.5, "high": 4.0}


def followed(violations: Sequence[float], start: float, **rule: float) -> list[float]:
    multiplier, values = Multiplier(start), []
    for violation in violations:
        multiplier = multiplier.updated(violation, **rule)
        values.append(multiplier.value)
    return values


def plain_loop(
    violations: Sequence[float], start: float, *, rate: float, decay: float, low: float,
    high: float, restarts: bool = True,
) -> list[float]:  # fmt: skip
    """The rule written out: the mean of what was measured since the bound was crossed last."""
    value, mean, values = start, None, []
    for violation in violations:
        crossed = mean is not None and (mean < 0 < violation or violation < 0 < mean)
        if mean is None or (crossed and restarts):
            mean = violation
        else:
            mean = decay * mean + (1 - decay) * violation
        value = min(max(value * math.exp(rate * mean), low), high)
        values.append(value)
    return values


def test_lambda_follows_the_running_mean_of_the_violation() -> None:
    first = Multiplier(1.0).updated(0.1, **RULE)
    assert first.value == pytest.approx(math.exp(0.2))
    second = first.updated(0.3, **RULE)
    assert second.ema == pytest.approx(0.75 * 0.1 + 0.25 * 0.3)
    assert second.value == pytest.approx(math.exp(0.2 + 2 * 0.15))


def test_the_running_mean_begins_anew_where_the_bound_is_crossed() -> None:
    below = Multiplier(1.0).updated(-0.4, **RULE)
    above = below.updated(0.1, **RULE)
    assert above.ema == 0.1
    assert above.value == pytest.approx(below.value * math.exp(0.2))
    assert above.updated(-0.2, **RULE).ema == -0.2
    assert below.updated(0.0, **RULE).ema == pytest.approx(0.75 * -0.4)  # on it is not across


@pytest.mark.parametrize("seed", range(5))
def test_lambda_is_that_of_a_plain_loop(seed: int) -> None:
    rng = random.Random(seed)
    # It stays on one side for long, scatters about the bound, and meets both clamps.
    violations = [rng.gauss(rng.choice((-0.5, 0.0, 0.5)), 0.1) for _ in range(20) for _ in range(9)]
    values = followed(violations, 1.0, **RULE)
    assert values == pytest.approx(plain_loop(violations, 1.0, **RULE))
    assert {min(values), max(values)} == {0.5, 4.0}


def test_lambda_comes_back_at_once_after_the_bound_was_kept_for_long() -> None:
    rule = {"rate": 2.0, "decay": 0.9, "low": 0.01, "high": 10.0}
    kept, broken = [-0.5] * 60, [0.5] * 7
    values = followed(kept + broken, 3.0, **rule)
    assert values[59] == pytest.approx(0.01)
    # Every update multiplies it by exp(2 * 0.5).
    assert values[60:64] == pytest.approx([0.01 * math.exp(n) for n in (1, 2, 3, 4)])
    assert values[-1] == pytest.approx(10.0)
    # With a mean that remembers the other side it would lie at the lower clamp all that time.
    assert plain_loop(kept + broken, 3.0, restarts=False, **rule)[-1] < 0.011


@pytest.mark.parametrize("mean", [-0.01, 0.0, 0.01])
def test_scatter_about_the_bound_moves_lambda_by_its_mean(mean: float) -> None:
    rng, n = random.Random(0), 20_000
    violations = [rng.gauss(mean, 0.05) for _ in range(n)]
    rule = {"rate": 0.1, "decay": 0.9, "low": 1e-30, "high": 1e30}
    moved = math.log(followed(violations, 1.0, **rule)[-1]) / (0.1 * n)
    assert moved == pytest.approx(mean, abs=0.002)


def test_lambda_is_clamped_without_overflow() -> None:
    assert Multiplier(1.0).updated(1e6, **RULE).value == pytest.approx(4.0)
    assert Multiplier(1.0).updated(-1e6, **RULE).value == pytest.approx(0.5)


def test_lambda_refuses_a_violation_that_is_no_number() -> None:
    with pytest.raises(FloatingPointError, match="violation of the bound is nan"):
        Multiplier(1.0).updated(math.nan, **RULE)
