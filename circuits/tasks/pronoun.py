"""Gendered pronouns: "Mary lost the ring because" is continued with "she" (Mathwin et al. 2023).

The metric is the logit of the pronoun that agrees with the name minus that of the other. The
corrupted prompt has a name of the other gender in the same place. As in the sources of the task,
names stand for what most of their bearers are called; nothing is claimed about anyone.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, is_single_token
from circuits.tasks.draw import draw_pairs
from circuits.tasks.ioi import FEMALE_NAMES, MALE_NAMES, PLACES, THINGS
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = (
    "{name} lost the {thing} because",
    "When {name} came to the {place},",
    "Then {name} said that",
)


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    places, things = (
        [word for word in words if is_single_token(tokenizer, f" {word}")]
        for words in (PLACES, THINGS)
    )
    named = {template: _names(tokenizer, template) for template in TEMPLATES}
    templates = [template for template, names in named.items() if all(names.values())]
    if not (templates and places and things):
        raise ValueError(
            "the tokenizer knows too few of the task's names, places and things as single tokens"
        )
    rng = random.Random(f"pronoun {seed}")

    def draw(attempt: int) -> PromptPair:
        turn, place = divmod(attempt, len(templates))
        template = templates[place]
        # Pronouns take turns, and where templates are even in number also from round to round, or
        # each template would have one of them only.
        is_she = (attempt + turn * (len(templates) + 1)) % 2 == 1
        right, wrong = (" she", " he") if is_she else (" he", " she")
        names = named[template]
        blanks = {"place": rng.choice(places), "thing": rng.choice(things)}
        return PromptPair(
            clean=template.format(name=rng.choice(names[right]), **blanks),
            corrupted=template.format(name=rng.choice(names[wrong]), **blanks),
            answers=(right,),
            wrong_answers=(wrong,),
            template=f"{TEMPLATES.index(template) + 1}",
        )

    return draw_pairs(n, draw)


def _names(tokenizer: PreTrainedTokenizerBase, template: str) -> dict[str, list[str]]:
    """The names of each pronoun that are one token where the template has them.

    A name that begins the text has no space before it, and many tokenizers split it then.
    """
    begins = template.startswith("{name}")
    space = "" if begins else " "
    return {
        pronoun: [
            name for name in names if is_single_token(tokenizer, f"{space}{name}", begins=begins)
        ]
        for pronoun, names in ((" she", FEMALE_NAMES), (" he", MALE_NAMES))
    }


TASK = Task(
    "pronoun",
    "he or she, by the name before; corrupted: a name of the other gender",
    "logit_diff",
    _pairs,
)
