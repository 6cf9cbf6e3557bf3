"""Drawing different prompts at random, with an end to it.

A task fills templates with words, so it has finitely many prompts, and the closer a draw comes to
all of them the seldomer it brings a new one.
"""

from __future__ import annotations

from collections.abc import Callable

from circuits.prompts import PromptPair, TooFewPrompts

MOST_PAIRS = 20_000
"""Pairs that one draw gives at most; more would take hours to run even in a small model."""
_ATTEMPTS_EACH = 100  # for each pair wanted, at most
_BARREN_AT_FIRST, _BARREN_EACH = 1_000, 2  # attempts in a row without a new prompt, at most


def draw_pairs(n: int, draw: Callable[[int], PromptPair]) -> list[PromptPair]:
    """Returns `n` pairs with different clean prompts, or fewer where no more turn up.

    Args:
        n: How many.
        draw: Gives the pair of an attempt, whose number it is called with.

    Raises:
        TooFewPrompts: more than `MOST_PAIRS` are asked for.
    """
    if n > MOST_PAIRS:
        raise TooFewPrompts(
            f"{n:,} different prompts are needed, and a task draws {MOST_PAIRS:,} at most; "
            "ask for fewer prompts"
        )
    pairs: dict[str, PromptPair] = {}
    barren = 0
    for attempt in range(_ATTEMPTS_EACH * n):
        if len(pairs) == n or barren > _BARREN_AT_FIRST + _BARREN_EACH * len(pairs):
            break
        before = len(pairs)
        pair = draw(attempt)
        pairs[pair.clean] = pair
        barren = 0 if len(pairs) > before else barren + 1
    return list(pairs.values())
