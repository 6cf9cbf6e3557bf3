"""Subject-verb agreement over a distance: "The keys near the camera" is continued with "are".

The metric is the logit of the verb that agrees with the subject minus that of the other. Between
subject and verb stands a noun of the other number, so that the nearest noun gives the wrong answer
(Linzen et al. 2016, arXiv 1611.01368). The corrupted prompt exchanges both numbers.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, is_single_token
from circuits.tasks.draw import draw_pairs
from circuits.tasks.ioi import NAMES, THINGS
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = (
    "The {subject} near the {other}",
    "{name} lost the {thing}. The {subject} near the {other}",
)


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    things = [
        thing
        for thing in THINGS
        if is_single_token(tokenizer, f" {thing}") and is_single_token(tokenizer, f" {thing}s")
    ]
    if len(things) < 3:
        raise ValueError(
            "the tokenizer knows too few of the task's nouns as single tokens in both numbers"
        )
    names = [name for name in NAMES if is_single_token(tokenizer, name, begins=True)]
    templates = TEMPLATES if names else TEMPLATES[:1]
    rng = random.Random(f"subject_verb {seed}")

    def draw(attempt: int) -> PromptPair:
        template = templates[attempt // 2 % len(templates)]
        subject, other, thing = rng.sample(things, 3)
        blanks = {"name": rng.choice(names), "thing": thing} if names else {}
        plural = template.format(subject=f"{subject}s", other=other, **blanks)
        singular = template.format(subject=subject, other=f"{other}s", **blanks)
        are_right = attempt % 2 == 0
        clean, corrupted = (plural, singular) if are_right else (singular, plural)
        right, wrong = (" are", " is") if are_right else (" is", " are")
        return PromptPair(
            clean=clean,
            corrupted=corrupted,
            answers=(right,),
            wrong_answers=(wrong,),
            template=f"{templates.index(template) + 1}",
        )

    return draw_pairs(n, draw)


TASK = Task(
    "subject_verb",
    "is or are, by the subject and not by the noun between; corrupted: numbers exchanged",
    "logit_diff",
    _pairs,
)
