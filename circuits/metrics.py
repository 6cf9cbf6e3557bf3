"""Metrics: logits at the answer position in, one number per prompt out.

Each metric is high when the model shows the behaviour. All share one signature,
`(logits, prompts, clean_logits) -> per-prompt values`, so that attribution and evaluation take
any of them by name; only `kl_div` looks at the clean run's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from circuits.prompts import Prompts

Logits = Float[Tensor, "batch d_vocab"]
PerPrompt = Float[Tensor, " batch"]
Metric = Callable[[Tensor, "Prompts", Tensor], Tensor]


def logit_diff(logits: Logits, prompts: Prompts, clean_logits: Logits) -> PerPrompt:
    """Returns mean logit of the answers minus mean logit of the wrong answers, in logits."""
    del clean_logits
    return _gathered(logits, prompts.answers, mean=True) - _gathered(
        logits, prompts.wrong_answers, mean=True
    )


def prob_diff(logits: Logits, prompts: Prompts, clean_logits: Logits) -> PerPrompt:
    """Returns probability of the answers minus that of the wrong answers, from -1 to 1.

    Source: Hanna et al. 2023 (arXiv 2305.00586), section 2; probabilities are of the whole
    vocabulary.
    """
    del clean_logits
    probs = logits.softmax(dim=-1)
    return _gathered(probs, prompts.answers, mean=False) - _gathered(
        probs, prompts.wrong_answers, mean=False
    )


def kl_div(logits: Logits, prompts: Prompts, clean_logits: Logits) -> PerPrompt:
    """Returns minus KL(clean run || this run) in nats: 0 at best, for any task."""
    del prompts
    clean = clean_logits.detach().log_softmax(dim=-1)
    return -(clean.exp() * (clean - logits.log_softmax(dim=-1))).sum(dim=-1)


def accuracy(logits: Logits, prompts: Prompts) -> Bool[Tensor, " batch"]:
    """Returns whether the most likely token of the whole vocabulary is a right answer."""
    return (logits.argmax(dim=-1, keepdim=True) == prompts.answers).any(dim=-1)


def beats_wrong(logits: Logits, prompts: Prompts) -> Bool[Tensor, " batch"]:
    """Returns whether a right answer is likelier than a wrong one: all right against all wrong."""
    log_probs = logits.log_softmax(dim=-1)

    def of_any(ids: Int[Tensor, "batch n"]) -> PerPrompt:
        gathered = log_probs.gather(-1, ids.clamp(min=0))
        return gathered.masked_fill(ids < 0, -torch.inf).logsumexp(dim=-1)

    return of_any(prompts.answers) > of_any(prompts.wrong_answers)


METRICS: dict[str, Metric] = {"logit_diff": logit_diff, "prob_diff": prob_diff, "kl_div": kl_div}


def register_metric(name: str, metric: Metric) -> Metric:
    """Adds a metric to `METRICS`, so that tasks and experiments can name it; returns it.

    Args:
        name: Its name in files and tables.
        metric: `(logits, prompts, clean_logits)` -> one number for each prompt, high when the
            model shows the behaviour, differentiable for the methods that use gradients. `logits`
            are those at each prompt's last token, `[batch d_vocab]`.

    Raises:
        ValueError: another metric already has that name.
    """
    if METRICS.get(name, metric) is not metric:
        raise ValueError(f"a metric named {name!r} is already registered; choose another name")
    METRICS[name] = metric
    return metric


def last_logits(
    logits: Float[Tensor, "batch pos d_vocab"], last: Int[Tensor, " batch"]
) -> Float[Tensor, "batch d_vocab"]:
    """Returns the logits at the position `last` of each prompt."""
    return logits[torch.arange(len(last), device=logits.device), last]


def _gathered(values: Logits, ids: Int[Tensor, "batch n"], *, mean: bool) -> PerPrompt:
    """Sum or mean of `values` at `ids`, passing over the filler -1."""
    present = ids >= 0
    picked = values.gather(-1, ids.clamp(min=0)) * present
    total = picked.sum(dim=-1)
    return total / present.sum(dim=-1) if mean else total
