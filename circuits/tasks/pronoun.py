"""Gendered pronouns: "Mary lost the ring because" is continued with "she" (Mathwin et al. 2023).

The metric is the logit of the pronoun that agrees with the name minus that of the other. The
corrupted prompt has a name of the other gender in the same place. As in the sources of the task,
names stand for what most of their bearers are called; nothing is claimed about anyone.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuits.tasks.ioi import FEMALE_NAMES, MALE_NAMES, PLACES, THINGS
from circuits.tasks.prompts import PromptPair, is_single_token
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = (
    "{name} lost the {thing} because",
    "When {name} came to the {place},",
    "Then {name} said that",
)


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    names = {
        pronoun: [name for name in every if is_single_token(tokenizer, f" {name}")]
        for pronoun, every in ((" she", FEMALE_NAMES), (" he", MALE_NAMES))
    }
    places, things = (
        [word for word in words if is_single_token(tokenizer, f" {word}")]
        for words in (PLACES, THINGS)
    )
    if not (all(names.values()) and places and things):
        raise ValueError(
            "the tokenizer knows too few of the task's names, places and things as single tokens"
        )
    rng = random.Random(f"pronoun {seed}")
    pairs: dict[str, PromptPair] = {}
    for attempt in range(100 * n):
        if len(pairs) == n:
            break
        template = TEMPLATES[attempt % len(TEMPLATES)]
        right, wrong = (" she", " he") if attempt % 2 else (" he", " she")
        blanks = {"place": rng.choice(places), "thing": rng.choice(things)}
        clean = template.format(name=rng.choice(names[right]), **blanks)
        pairs[clean] = PromptPair(
            clean=clean,
            corrupted=template.format(name=rng.choice(names[wrong]), **blanks),
            answers=(right,),
            wrong_answers=(wrong,),
            template=f"{TEMPLATES.index(template) + 1}",
        )
    return list(pairs.values())


TASK = Task(
    "pronoun",
    "he or she, by the name before; corrupted: a name of the other gender",
    "logit_diff",
    _pairs,
)
