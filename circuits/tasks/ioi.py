"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593).

"When Mary and John went to the store, John gave a drink to" is continued with the name that was
mentioned once (the indirect object, Mary), not with the one mentioned twice (the subject, John).
Half of the prompts name the indirect object first (ABBA), half the subject first (BABA). The
metric is the logit of the indirect object minus that of the subject.

Corrupted prompts replace the subject's second mention: by a third name (the default), so that
both names of the first clause are as likely, or, as the task `ioi_swap`, by the other name, so
that the answer becomes the other one.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, is_single_token
from circuits.tasks.draw import draw_pairs
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "After {first} and {second} met near the {place}, {giver} handed the {thing} to",
    "While {first} and {second} were working at the {place}, {giver} offered a {thing} to",
    "Then {first} and {second} had a long talk in the {place}. Later {giver} sent the {thing} to",
    "Yesterday {first} and {second} walked around the {place} and {giver} passed a {thing} to",
)
FEMALE_NAMES = tuple(
    "Mary Alice Anna Amy Sarah Laura Emily Julia Kate Jane Rachel Jessica Lisa Karen Susan Helen "
    "Linda Nancy Emma Grace Rose Diana Maria Claire Ellen Lucy Sophie Victoria".split()
)
MALE_NAMES = tuple(
    "John James David Mark Paul Peter Simon Tom Robert Michael Daniel Andrew Steven Kevin Brian "
    "George Edward Richard Thomas Charles William Henry Jack Adam Eric Ryan Scott Patrick".split()
)
NAMES = FEMALE_NAMES + MALE_NAMES
PLACES = tuple("store garden school park office library market station hotel museum".split())
THINGS = tuple("drink book letter ring basket computer ball camera key map".split())


def _pairs(
    tokenizer: PreTrainedTokenizerBase, n: int, seed: int, *, swap: bool
) -> list[PromptPair]:
    names, places, things = (
        [word for word in words if is_single_token(tokenizer, f" {word}")]
        for words in (NAMES, PLACES, THINGS)
    )
    if len(names) < 3 or not places or not things:
        raise ValueError(
            f"the tokenizer knows {len(names)} of IOI's names, {len(places)} of its places and "
            f"{len(things)} of its things as single tokens; 3, 1 and 1 are needed"
        )
    rng = random.Random(f"ioi {seed}")
    patterns = [(text, order) for text in TEMPLATES for order in ("ABBA", "BABA")]

    def draw(attempt: int) -> PromptPair:
        # Round robin over the patterns: each has the same share of any n.
        text, order = patterns[attempt % len(patterns)]
        indirect_object, subject, third = rng.sample(names, 3)
        mentions = (indirect_object, subject) if order == "ABBA" else (subject, indirect_object)
        fill = partial(
            text.format,
            first=mentions[0],
            second=mentions[1],
            place=rng.choice(places),
            thing=rng.choice(things),
        )
        clean = fill(giver=subject)
        return PromptPair(
            clean=clean,
            corrupted=fill(giver=indirect_object if swap else third),
            answers=(f" {indirect_object}",),
            wrong_answers=(f" {subject}",),
            template=f"{TEMPLATES.index(text) + 1} {order}",
        )

    return draw_pairs(n, draw)


TASK = Task(
    "ioi",
    "indirect object identification; corrupted: the second mention is a third name",
    "logit_diff",
    partial(_pairs, swap=False),
)
SWAP_TASK = Task(
    "ioi_swap",
    "indirect object identification; corrupted: the second mention is the other name",
    "logit_diff",
    partial(_pairs, swap=True),
)
