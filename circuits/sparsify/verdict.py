"""What can be concluded from a run's numbers.

A bound that is kept is not yet a success. Text that the tokenizer cannot read is predicted badly by
every model alike, so any model keeps a bound on it, with all gates shut too. And on text that is
new to the dense model training alone lowers the cross-entropy: a twin far below its bound has
bought sparsity with what it learned, and CE <= tau says little about what the gates cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from circuits.gate.density import Density
from circuits.numbers import percent

MANY_UNKNOWN = 0.05
"""The share of unknown tokens from which on a run warns."""
NEW_TEXT_GAIN = 0.1
"""Nats below the bound, and below the dense model, from which on a text counts as new to it."""
_SHUT = 5e-5  # a density below it reads 0.00 %


@dataclass(frozen=True)
class BoundWatch:
    """How often the checks of lambda found the bound broken, and since when.

    Attributes:
        checks: The number of checks.
        outside: How many of them found it above.
        since: The step of the first of the checks, up to the last one, that all did; None if the
            last one did not.
    """

    checks: int = 0
    outside: int = 0
    since: int | None = None

    def after(self, step: int, is_outside: bool) -> BoundWatch:
        """Returns the watch with one more check, made after `step` steps."""
        since = (step if self.since is None else self.since) if is_outside else None
        return BoundWatch(self.checks + 1, self.outside + is_outside, since)

    def in_words(self, bounded: str = "CE") -> str:
        """Returns a sentence; `bounded` is the name of what is bounded."""
        if self.checks == 0:
            return f"{bounded} on the control set was not checked"
        share = f"{self.outside} of {self.checks} checks"
        text = f"{bounded} on the control set was above its bound at {share}"
        if self.since is not None:
            return f"{text}, and from step {self.since} to the last one"
        return f"{text}, not at the last one" if self.outside else text


def check_readable(
    dense_ce: float, d_vocab: int, tokens: Int[Tensor, "batch pos"], tokenizer: Any
) -> str | None:
    """Returns a warning if many tokens of the text are unknown ones, else None.

    Args:
        dense_ce: The dense model's cross-entropy on `tokens`, in nats.
        d_vocab: The size of its vocabulary.
        tokens: Held-out sequences of the text.
        tokenizer: The model's tokenizer, None if it has none.

    Raises:
        ValueError: the dense model is worse than guessing among all tokens.
    """
    share, guessing = unknown_share(tokens, tokenizer), math.log(d_vocab)
    unread = "" if share is None else f", of which {percent(share)} are unknown to the tokenizer,"
    if dense_ce > guessing:
        raise ValueError(
            f"the dense model cannot read this text: its cross-entropy on the {tokens.numel()} "
            f"held-out tokens{unread} is {dense_ce:.4f} nats, above the ln({d_vocab}) = "
            f"{guessing:.4f} of guessing; train on text of the kind that it and its tokenizer were "
            "made for"
        )
    if share is not None and share > MANY_UNKNOWN:
        return (
            f"{percent(share)} of the text's held-out tokens are unknown to the tokenizer, and all "
            "of these are one token to the model; take text that it was made for"
        )
    return None


def unknown_share(tokens: Int[Tensor, "batch pos"], tokenizer: Any) -> float | None:
    """Returns the fraction of tokens that stand for what the tokenizer does not know.

    None if it has no token for that alone: all bytes are known to it, or the token also separates
    documents.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = [getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")]
    if unknown is None or unknown in others:
        return None
    return (tokens == unknown).double().mean().item()


def is_attention_free(density: Density) -> bool:
    """Returns whether next to no edge is open: a density of 0.00 %, less than one edge a token."""
    edges_per_token = density.per_head.sum().item() * (density.context + 1) / 2
    return density.overall < _SHUT and edges_per_token < 1


def is_new_text(ce: float, dense_ce: float, tau: float) -> bool:
    """Returns whether a CE lies so far below bound and dense model that the text taught it."""
    return ce < min(tau, dense_ce) - NEW_TEXT_GAIN
