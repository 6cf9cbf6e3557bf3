"""The control of post-training: the dense model trained on, without a gate.

Post-training changes a model in two ways: it shuts attention edges, and it trains on. A difference
between the dense model and its sparse twin is an effect of sparsity only if the second of these
alone does not bring it about. The control takes the same optimiser, schedule, batches and number
of steps as `post_train`, and descends the cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from torch import nn

from circuits.gate import is_gated
from circuits.models import copy_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.loss import cross_entropy

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def train_on(
    model: HookedTransformer,
    stream: TokenStream,
    config: TrainConfig,
    *,
    frozen: Collection[str] = (),
    betas: tuple[float, float] = (0.9, 0.999),
    progress: bool = True,
) -> HookedTransformer:
    """Returns a copy of the dense model after `config.steps` steps of training without a gate.

    What concerns the gate and the constraint in `config` is left aside.

    Args:
        model: A dense model; it stays as it is.
        stream: Training sequences.
        config: The recipe that the sparse twin was made with.
        frozen: Names of parameters that must keep their values.
        betas: AdamW's; post-training leaves them at torch's default.
        progress: Show a progress bar.

    Raises:
        ValueError: the model has a gate.
        FloatingPointError: the loss is not finite.
    """
    if is_gated(model):
        raise ValueError("the model has a gate; a control is made of the dense model")
    control: Any = copy_model(model)
    trained = [p for name, p in control.named_parameters() if name not in frozen]
    for name, parameter in control.named_parameters():
        parameter.requires_grad_(name not in frozen)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay
    )
    control.train()
    with Progress(disable=not progress) as bars:
        bar = bars.add_task("dense, trained on", total=config.steps)
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            tokens = stream.batch(step, config.batch_size).to(control.W_E.device)
            loss = cross_entropy(control(tokens), tokens)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step + 1}; lower learning_rate "
                    f"(now {config.learning_rate})"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, config.grad_clip)
            optimizer.step()
            bars.update(bar, advance=1, description=f"dense, trained on, loss {loss.item():.3f}")
    for parameter in control.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return control.eval()
