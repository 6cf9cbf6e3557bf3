"""Induction: a list is repeated, and each word is continued as it was the first time.

"List: fox gold map lamp. Again: fox gold" is continued with "map" (Elhage et al. 2021; Olsson et
al. 2022, arXiv 2209.11895). The corrupted prompt has the next word and a later one exchanged in the
first list, so that the later one would come next; the metric is the logit of the right word minus
that of the later one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, is_single_token
from circuits.tasks.draw import draw_pairs
from circuits.tasks.ioi import PLACES, THINGS
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = (
    "List: {items}. Again: {repeated}",
    "The words {items} and once more the words {repeated}",
)
WORDS = (
    *PLACES,
    *THINGS,
    *"dog cat horse bird fox sheep mouse bear lion duck apple bread salt paper stone".split(),
    *"glass silver gold iron wood water fire".split(),
)
N_ITEMS = 5


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    words = [word for word in WORDS if is_single_token(tokenizer, f" {word}")]
    if len(words) < N_ITEMS:
        raise ValueError(
            f"the tokenizer knows {len(words)} of the task's words as single tokens; "
            f"{N_ITEMS} are needed"
        )
    rng = random.Random(f"induction {seed}")

    def draw(attempt: int) -> PromptPair:
        template = TEMPLATES[attempt % len(TEMPLATES)]
        n_repeated = 1 + attempt // len(TEMPLATES) % (N_ITEMS - 2)
        items = rng.sample(words, N_ITEMS)
        repeated = " ".join(items[:n_repeated])
        later = rng.randrange(n_repeated + 1, N_ITEMS)
        changed = list(items)
        changed[n_repeated], changed[later] = items[later], items[n_repeated]
        clean = template.format(items=" ".join(items), repeated=repeated)
        return PromptPair(
            clean=clean,
            corrupted=template.format(items=" ".join(changed), repeated=repeated),
            answers=(f" {items[n_repeated]}",),
            wrong_answers=(f" {items[later]}",),
            template=f"{TEMPLATES.index(template) + 1}, {n_repeated} repeated",
        )

    return draw_pairs(n, draw)


TASK = Task(
    "induction",
    "the next word of a list that is repeated; corrupted: it and a later one change places",
    "logit_diff",
    _pairs,
)
