"""Seeds: which numbers are allowed, and how one is folded into others.

torch takes seeds below 2**64. Where a seed is shifted to make room for other numbers, a large one,
such as a date, no longer fits: then a digest of the same numbers takes its place.
"""

from __future__ import annotations

import hashlib
from typing import Any

MAX_SEED = 2**63 - 1
"""The largest seed; the smallest is 0."""
SEED_RANGE = f"a whole number from 0 to {MAX_SEED} (2**63 - 1)"
"""The allowed seeds in words."""

_TORCH_SEEDS = 2**64


def is_seed(value: Any) -> bool:
    """Returns whether `value` is a whole number that is allowed as a seed."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED


def check_seed(seed: int) -> None:
    """Refuses what is not a seed.

    Raises:
        ValueError: it is not a whole number, negative, or too large.
    """
    if not is_seed(seed):
        raise ValueError(f"seed is {seed!r}; it must be {SEED_RANGE}")


def sub_seed(folded: int, name: str) -> int:
    """Returns `folded` where torch takes it as a seed, else a number of 63 bits made from `name`.

    Args:
        folded: A seed and other numbers in one, such as `(seed << 40) + step`; at least 0.
        name: The same numbers, written out.
    """
    return folded if folded < _TORCH_SEEDS else number_of(name)


def number_of(text: str) -> int:
    """Returns a number of 63 bits, the same for the same text on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
