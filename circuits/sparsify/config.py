"""The recipe of a post-training run, as one value that checks itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from circuits.settings import (
    AT_LEAST_0,
    AT_LEAST_1,
    FINITE,
    FROM_0,
    POSITIVE,
    POSITIVE_OR_NONE,
    SHARE,
    TRUE_OR_FALSE,
    Rule,
    complaints,
    described,
    one_of,
    setting,
)

LEARNING_RATE_TIMES_WIDTH = 1.5e-3 * 128
"""The default learning rate, times the width of the model."""

SCHEDULE = "Schedule and optimiser"
GATE = "Gate and penalty"
BOUND = "The bound and lambda"
LAYERS = "A start by layers"
LOW_RANK = "Low rank"
COST = "Memory and time"
MEASURES = "What is measured"


@described
@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a post-training run, but for the model and its data.

    A control (`gate` False) leaves aside what concerns the gate, its bound and lambda.
    """

    steps: int = setting(2500, SCHEDULE, "Optimiser steps.", AT_LEAST_1)
    batch_size: int = setting(32, SCHEDULE, "Sequences per step.", AT_LEAST_1)
    learning_rate: float | None = setting(
        None,
        SCHEDULE,
        "Peak of the one-cycle schedule; by default 0.192 / width of the model.",
        POSITIVE_OR_NONE,
    )
    warm_up: float = setting(
        0.1,
        SCHEDULE,
        "Fraction of the steps in which the learning rate rises, before it falls as a cosine.",
        SHARE,
    )
    beta2: float = setting(
        0.999,
        SCHEDULE,
        "AdamW's decay of the running mean of squared gradients; beta1 is 0.9.",
        SHARE,
    )
    weight_decay: float = setting(
        0.01, SCHEDULE, "AdamW's decay of all trained parameters.", FROM_0
    )
    grad_clip: float = setting(
        1.0,
        SCHEDULE,
        "Greatest norm of the gradient; a longer one is scaled down to it.",
        POSITIVE,
    )
    seed: int = setting(
        0,
        SCHEDULE,
        "Seed of the gate's noise and of low-rank updates; on the command line also of the order "
        "of the data.",
        Rule(SEED_RANGE, is_seed),
    )
    gate: bool = setting(
        True,
        GATE,
        "A sparse twin, or a control: the same training without a gate and a price on edges.",
        TRUE_OR_FALSE,
        option="--gate/--control",
    )
    bias: float = setting(
        0.0, GATE, "b, added to the attention scores to give the gate logits.", FINITE
    )
    edge_weight: float = setting(8.0, GATE, "Weight of the edge penalty in the loss.", POSITIVE)
    penalty: EdgePenalty = setting(
        "rms", GATE, "How the layers' densities make one penalty.", one_of(EDGE_PENALTIES)
    )
    bound: Bound | str = setting(
        "ce",
        BOUND,
        "What is bounded on held-out text: ce, the cross-entropy, or kl, the divergence from the "
        "dense model, which lambda then weighs in place of the CE.",
        one_of(BOUNDS),
    )
    slack: float = setting(0.0, BOUND, "Nats by which the CE may exceed the dense model's.", FROM_0)
    tau: float | None = setting(
        None,
        BOUND,
        "The bound on the CE of the selection set itself, in nats, in place of slack.",
        POSITIVE_OR_NONE,
    )
    epsilon: float = setting(
        0.02,
        BOUND,
        "The bound on KL(dense || sparse) in nats a token, where that is bounded.",
        POSITIVE,
    )
    margin: float = setting(
        0.002,
        BOUND,
        "Nats below the bound that lambda aims at, so that the end of the run keeps it; of a KL at "
        "most a tenth of epsilon.",
        FROM_0,
    )
    ce_weight: float = setting(
        1.0,
        BOUND,
        "Weight of the CE inside the loss; 0 to follow the dense model alone.",
        FROM_0,
    )
    distillation: float = setting(
        0.0, BOUND, "Weight of KL(dense || sparse), added to the CE inside the loss.", FROM_0
    )
    lambda_start: float = setting(
        1.0, BOUND, "First value of lambda, the weight of the CE, or of a bounded KL.", POSITIVE
    )
    lambda_warm_up: float = setting(
        0.0,
        BOUND,
        "Fraction of the steps in which lambda keeps its first value; what is measured in them has "
        "no part in its running mean.",
        SHARE,
    )
    lambda_min: float = setting(0.01, BOUND, "Smallest lambda.", POSITIVE)
    lambda_max: float = setting(10.0, BOUND, "Greatest lambda.", POSITIVE)
    lambda_rate: float = setting(
        2.0,
        BOUND,
        "Growth of log lambda per update and nat of violation; per epsilon where a KL is bounded.",
        FROM_0,
    )
    lambda_decay: float = setting(
        0.9,
        BOUND,
        "Weight of the past in the running mean of violations, which begins anew when it crosses "
        "0.",
        SHARE,
    )
    layer_steps: int = setting(
        0,
        LAYERS,
        "Steps for each layer's attention by itself, before all are trained together; 0 for none. "
        "For models of some size, with --lora-rank.",
        AT_LEAST_0,
    )
    layer_price: float = setting(
        30.0,
        LAYERS,
        "What a nat of divergence costs a layer, in densities of that layer.",
        POSITIVE,
    )
    layer_learning_rate: float = setting(
        1e-2, LAYERS, "Highest learning rate of these steps.", POSITIVE
    )
    layer_sequences: int = setting(
        256, LAYERS, "Training sequences that layers are trained on.", AT_LEAST_1
    )
    lora_rank: int = setting(
        0,
        LOW_RANK,
        "Rank of the updates that are trained (LoRA) in place of full weights; 0 for full weights.",
        AT_LEAST_0,
    )
    lora_alpha: float = setting(
        16.0, LOW_RANK, "The updates are scaled by lora_alpha / lora_rank.", POSITIVE
    )
    lora_targets: LowRankTargets | str = setting(
        "all", LOW_RANK, "Which weights have an update.", one_of(LOW_RANK_TARGETS)
    )
    accumulate: int = setting(
        1,
        COST,
        "Parts that a batch is run in, one after the other, to need less memory; for the penalties "
        "rms and log their densities stand in for the batch's.",
        AT_LEAST_1,
    )
    precision: Precision | str = setting(
        "float32",
        COST,
        "What training steps compute in; weights and all that is measured keep the model's dtype.",
        one_of(PRECISIONS),
    )
    attention: AttentionPath | str = setting(
        "auto",
        COST,
        "How gated attention is computed: hooks holds every score; auto is the fastest that works.",
        one_of(ATTENTION_PATHS),
    )
    compile: bool = setting(
        False,
        COST,
        "MLPs and norms through torch.compile: faster after a first step of tens of seconds.",
        TRUE_OR_FALSE,
    )
    cuda_graph: bool = setting(
        False,
        COST,
        "Record a step on a CUDA GPU once and replay it: far faster where steps wait for Python.",
        TRUE_OR_FALSE,
    )
    recompute: bool = setting(
        False,
        COST,
        "Keep only the blocks' inputs for the backward pass: less memory, a third more time.",
        TRUE_OR_FALSE,
    )
    control_every: int = setting(10, MEASURES, "Steps between updates of lambda.", AT_LEAST_1)
    control_sequences: int = setting(
        32, MEASURES, "Held-out sequences that an update of lambda measures on.", AT_LEAST_1
    )
    evaluate_every: int = setting(
        100,
        MEASURES,
        "Steps between evaluations, each of them a candidate for the result.",
        AT_LEAST_1,
    )
    selection_sequences: int = setting(
        128, MEASURES, "Held-out sequences that candidates are measured on.", AT_LEAST_1
    )
    checkpoint_every: int = setting(100, MEASURES, "Steps between checkpoints.", AT_LEAST_1)

    def __post_init__(self) -> None:
        wrong = [*complaints(self)]
        # What is wrong between fields is only asked of values that are right by themselves.
        if wrong := wrong or [*self._contradictions()]:
            raise ValueError(f"bad training config: {'; '.join(wrong)}")

    def _contradictions(self) -> Iterator[str]:
        """Yields what is wrong between the fields, each of them allowed by itself."""
        if self.batch_size % self.accumulate:
            yield (
                f"accumulate is {self.accumulate}; it must be a divisor of batch_size = "
                f"{self.batch_size}"
            )
        if self.tau is not None and self.slack != 0:
            yield f"slack is {self.slack}; it must be 0 where tau is given"
        if self.bound == "kl":
            for name, usual in (("tau", None), ("slack", 0), ("ce_weight", 1), ("distillation", 0)):
                if (value := getattr(self, name)) != usual:
                    yield (
                        f"{name} is {value}; it must be left out where bound is kl, which is held "
                        f"by epsilon = {self.epsilon}"
                    )
        elif self.epsilon != TrainConfig.epsilon:
            yield f"epsilon is {self.epsilon}; it must be left out where bound is not kl"
        if self.ce_weight == 0 and self.distillation == 0:
            yield (
                f"distillation is {self.distillation}; it must be > 0 where ce_weight is 0, since "
                "nothing else holds the model"
            )
        if self.layer_steps and not self.lora_rank:
            yield (
                f"layer_steps is {self.layer_steps}; it must be 0 where lora_rank is 0, since "
                "layers are started as low-rank updates"
            )
        if not self.lambda_min <= self.lambda_start <= self.lambda_max:
            yield (
                f"lambda_start is {self.lambda_start}; it must be between lambda_min = "
                f"{self.lambda_min} and lambda_max = {self.lambda_max}"
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
