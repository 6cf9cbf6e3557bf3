"""Cross-entropy, divergence and density on held-out sequences: how a run measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.gate.density import Density, dense_density, density_of, record_open_edges
from circuits.gate.gate import is_gated
from circuits.gate.top_k import is_top_k
from circuits.sparsify.loss import cross_entropy, distillation_loss

if TYPE_CHECKING:
    from circuits.models.backend import Model


_EVALUATION_BATCH, _EVALUATION_TOKENS = 32, 2**13  # at once, at most, but for one sequence
# Of each of two models that are compared, likewise: little memory on a CPU, few passes on a GPU.
_LOGITS = {True: 2**26, False: 2**29}  # on a CPU, elsewhere


@torch.no_grad()
def evaluate(model: Model, tokens: Int[Tensor, "batch pos"]) -> tuple[float, Density]:
    """Returns CE in nats, and the density that a gate (deterministic) or a top-k mask leaves.

    A dense model's is 1.
    """
    context = tokens.shape[1]
    if not (is_gated(model) or is_top_k(model)):
        return evaluate_ce(model, tokens), dense_density(model, context)
    with record_open_edges(model) as edges:
        ce = evaluate_ce(model, tokens)
    return ce, density_of(edges, context=context)


@torch.no_grad()
def evaluate_kl(
    model: Model, dense: Model, tokens: Int[Tensor, "batch pos"]
) -> tuple[float, float, Density]:
    """Returns a gated model's CE in nats, KL(dense || model) in nats a token, and density.

    The divergence is the mean over all positions, in evaluation mode; modes are restored.
    """
    context, models = tokens.shape[1], (model, dense)
    modes = [each.training for each in models]
    logits_at_once = _LOGITS[model.W_E.device.type == "cpu"]
    at_once = min(
        _EVALUATION_BATCH,
        max(1, min(_EVALUATION_TOKENS, logits_at_once // model.cfg.d_vocab) // context),
    )
    ce = kl = 0.0
    try:
        for each in models:
            each.eval()
        with record_open_edges(model) as edges:
            for rows in tokens.split(at_once):
                rows = rows.to(model.W_E.device)
                logits, reference = model(rows), dense(rows)
                ce += cross_entropy(logits, rows).item() * len(rows)
                kl += distillation_loss(logits, reference).item() * len(rows)
    finally:
        for each, was_training in zip(models, modes, strict=True):
            each.train(was_training)
    return ce / len(tokens), kl / len(tokens), density_of(edges, context=context)


@torch.no_grad()
def evaluate_ce(model: Model, tokens: Int[Tensor, "batch pos"]) -> float:
    """Returns the mean next-token cross-entropy in nats, in evaluation mode; mode restored."""
    was_training = model.training
    model.eval()
    try:
        total = 0.0
        at_once = min(_EVALUATION_BATCH, max(1, _EVALUATION_TOKENS // tokens.shape[1]))
        for rows in tokens.split(at_once):
            rows = rows.to(model.W_E.device)
            total += cross_entropy(model(rows), rows).item() * len(rows)
    finally:
        model.train(was_training)
    return total / len(tokens)
