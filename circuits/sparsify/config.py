"""The recipe of a post-training run, as one value that checks itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from circuits.choices import (
    ATTENTION_PATHS,
    BOUNDS,
    EDGE_PENALTIES,
    LOW_RANK_TARGETS,
    PRECISIONS,
    AttentionPath,
    Bound,
    EdgePenalty,
    LowRankTargets,
    Precision,
)
from circuits.seeds import SEED_RANGE, is_seed

_CHOICES: dict[str, Mapping[Any, str]] = {
    "attention": ATTENTION_PATHS,
    "bound": BOUNDS,
    "penalty": EDGE_PENALTIES,
    "precision": PRECISIONS,
    "lora_targets": LOW_RANK_TARGETS,
}
LEARNING_RATE_TIMES_WIDTH = 1.5e-3 * 128
"""The default learning rate, times the width of the model."""

_SHARES = ("warm_up", "beta2", "lambda_decay", "lambda_warm_up")
_FROM_ZERO = ("weight_decay", "slack", "margin", "ce_weight", "distillation", "lambda_rate")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a post-training run, but for the model and its data.

    Attributes:
        gate: False for a control: the same training without a gate, and without a price on edges.
            What concerns the gate and its bound (bias, edge_weight, penalty, bound, epsilon, tau,
            slack, margin, lambda_* and control_*) is left aside then.
        steps: Optimiser steps.
        batch_size: Sequences per step.
        accumulate: Parts that a batch is run in, one after the other, to need less memory. The
            parts' losses are averaged: for the penalties `rms` and `log` the parts' densities
            stand in for the batch's.
        precision: `float32`, or `bfloat16` for training steps under autocast: weights, optimiser
            and everything that is measured on held-out sequences stay in the model's own dtype.
        attention: How gated attention is computed: `hooks` through the hook points, which holds
            every score; `blockwise` or `triton`, which do not; or `auto`, the fastest that works
            for the model on its device. See circuits/fused.
        compile: Run MLPs and norms of training steps through torch.compile: faster after a first
            step that takes tens of seconds.
        recompute: Keep only the inputs of the blocks for the backward pass and compute the rest
            again: less memory, about a third more time.
        lora_rank: Rank of the updates that are trained in place of full weights; 0 for full
            weights. See circuits/sparsify/low_rank.py.
        lora_alpha: The updates are scaled by lora_alpha / lora_rank.
        lora_targets: Which weights have an update: `attention`, `mlp` or `all`.
        learning_rate: Peak of the one-cycle schedule; None for one that fits the model's width, see
            `for_width`.
        warm_up: Fraction of the steps in which the learning rate rises; then it falls as a cosine.
        beta2: AdamW's decay of the running mean of squared gradients; beta1 is 0.9.
        weight_decay: AdamW's decay of all trained parameters.
        grad_clip: Greatest norm of the gradient; longer ones are scaled down to it.
        bias: b, added to the attention scores to give the gate logits.
        edge_weight: Weight of the edge penalty in the loss.
        penalty: How the densities of the layers make one penalty; see `loss.edge_penalty`.
        bound: What is bounded on held-out text: `ce`, the cross-entropy, or `kl`, KL(dense ||
            sparse), which is then also what lambda weighs in the loss, in place of the CE.
        epsilon: The bound on KL(dense || sparse) in nats a token, where that is bounded.
        tau: The bound on the CE in nats, on the selection set; None for the dense model's CE there
            plus `slack`. The bound on the control set lies as far from the dense model's CE on it.
        slack: Nats by which the sparse model's CE may exceed the dense one's.
        margin: Nats below the bound that lambda aims at, so that the end of the run keeps it. At
            most a tenth of epsilon where the KL is bounded, which cannot fall below 0.
        lambda_start: First value of lambda, the weight of the CE, or of a bounded KL.
        lambda_warm_up: Fraction of the steps in which lambda keeps its first value. What is
            measured in them has no part in its running mean of violations.
        lambda_min: Smallest lambda.
        lambda_max: Greatest lambda.
        lambda_rate: Growth of log lambda per nat of violation and update.
        lambda_decay: Weight of the past in the running mean of violations, which begins anew when
            it crosses 0.
        control_every: Steps between updates of lambda.
        control_sequences: Held-out sequences that an update of lambda measures on.
        evaluate_every: Steps between evaluations, each of them a candidate for the result.
        selection_sequences: Held-out sequences that candidates are measured on.
        checkpoint_every: Steps between checkpoints.
        ce_weight: Weight of the CE inside the loss; 0 to follow the dense model alone. The bound is
            on the CE all the same.
        distillation: Weight of KL(dense || sparse), added to the CE inside the loss; 0 for none.
        seed: Seed of the gate's noise.
    """

    gate: bool = True
    steps: int = 2500
    batch_size: int = 32
    accumulate: int = 1
    precision: Precision | str = "float32"
    attention: AttentionPath | str = "auto"
    compile: bool = False
    recompute: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: LowRankTargets | str = "all"
    learning_rate: float | None = None
    warm_up: float = 0.1
    beta2: float = 0.999
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    bias: float = 0.0
    edge_weight: float = 8.0
    penalty: EdgePenalty = "rms"
    bound: Bound | str = "ce"
    epsilon: float = 0.02
    tau: float | None = None
    slack: float = 0.0
    margin: float = 0.002
    lambda_start: float = 1.0
    lambda_warm_up: float = 0.0
    lambda_min: float = 0.01
    lambda_max: float = 10.0
    lambda_rate: float = 2.0
    lambda_decay: float = 0.9
    control_every: int = 10
    control_sequences: int = 32
    evaluate_every: int = 100
    selection_sequences: int = 128
    checkpoint_every: int = 100
    ce_weight: float = 1.0
    distillation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}; it must be {allowed}"
            for name, value, holds, allowed in self._requirements()
            if not holds(value)
        ]
        if wrong:
            raise ValueError(f"bad training config: {'; '.join(wrong)}")

    def _requirements(self) -> Iterator[tuple[str, Any, Any, str]]:
        """Yields each field's name, value, test and the test in words."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _CHOICES:
                allowed = tuple(_CHOICES[field.name])
                yield field.name, value, allowed.__contains__, f"one of {', '.join(allowed)}"
            elif isinstance(field.default, bool):
                yield field.name, value, lambda v: isinstance(v, bool), "True or False"
            elif field.name == "seed":
                yield field.name, value, is_seed, SEED_RANGE
            elif field.name == "lora_rank":
                yield field.name, value, lambda v: _is_int(v) and v >= 0, "a whole number >= 0"
            elif isinstance(field.default, int):
                yield field.name, value, lambda v: _is_int(v) and v >= 1, "a whole number >= 1"
            elif field.name == "bias":
                yield field.name, value, _is_finite, "a finite number"
            elif field.name in ("tau", "learning_rate"):
                yield field.name, value, _is_positive_or_none, "a number > 0, or None"
            elif field.name in _SHARES:
                yield field.name, value, lambda v: _is_finite(v) and 0 <= v < 1, "in [0, 1)"
            elif field.name in _FROM_ZERO:
                yield field.name, value, lambda v: _is_finite(v) and v >= 0, "a number >= 0"
            else:
                yield field.name, value, lambda v: _is_finite(v) and v > 0, "a number > 0"
        if all(isinstance(n, int) and n >= 1 for n in (self.accumulate, self.batch_size)):
            yield (
                "accumulate",
                self.accumulate,
                lambda v: self.batch_size % v == 0,
                f"a divisor of batch_size = {self.batch_size}",
            )
        if self.tau is not None:
            yield "slack", self.slack, lambda v: v == 0, "0 where tau is given"
        if self.bound == "kl":
            for name, usual in (("tau", None), ("slack", 0), ("ce_weight", 1), ("distillation", 0)):
                allowed = f"left out where bound is kl, which is held by epsilon = {self.epsilon}"
                yield name, getattr(self, name), lambda v, usual=usual: v == usual, allowed
        elif self.bound == "ce":
            usual = TrainConfig.epsilon
            yield "epsilon", self.epsilon, lambda v: v == usual, "left out where bound is not kl"
        if self.ce_weight == 0:
            alone = "> 0 where ce_weight is 0, since nothing else holds the model"
            yield "distillation", self.distillation, lambda v: v > 0, alone
        if all(map(_is_finite, (self.lambda_min, self.lambda_max, self.lambda_start))):
            low, high = self.lambda_min, self.lambda_max
            yield (
                "lambda_start",
                self.lambda_start,
                lambda v: low <= v <= high,
                f"between lambda_min = {low} and lambda_max = {high}",
            )

    def for_width(self, d_model: int) -> TrainConfig:
        """Returns the recipe with a learning rate: if it has none, one for models of this width.

        It falls as 1 / width, as AdamW's step moves the sum over a row of weights in proportion to
        the row's length. docs/training.md has the measurements that set it.
        """
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=LEARNING_RATE_TIMES_WIDTH / d_model)

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step: up in a line, then down to nothing as a cosine.

        Raises:
            ValueError: the recipe has no learning rate; see `for_width`.
        """
        if self.learning_rate is None:
            raise ValueError("the recipe leaves the learning rate to the model's width")
        rising = self.warm_up * self.steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        done = (step - rising) / max(self.steps - rising, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_or_none(value: Any) -> bool:
    return value is None or (_is_finite(value) and value > 0)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
