"""Greater-than over years (Hanna et al. 2023, arXiv 2305.00586).

"The war lasted from the year 1732 to the year 17" is continued with two digits above 32. The
metric is the probability of all two-digit years above the start year minus that of all others
(00 to the start year itself). The corrupted prompt starts in year 01, after which nearly
every year is allowed, so that it says nothing about where to cut.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, is_single_token, token_ids
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "The {event} lasted from the year {century}{year} to the year {century}"
EVENTS = tuple(
    "war siege voyage journey trial campaign famine strike project reign conflict expedition "
    "festival alliance treaty struggle mission program search drought".split()
)
CENTURIES = tuple(range(11, 18))
YEARS = tuple(f"{year:02d}" for year in range(100))
CORRUPTED_YEAR = "01"


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    missing = [year for year in YEARS if not is_single_token(tokenizer, year)]
    if missing:
        raise ValueError(
            f"greater_than needs all two-digit years as single tokens; this tokenizer splits "
            f"{len(missing)} of them ({', '.join(missing[:5])}...)"
        )
    events = [event for event in EVENTS if is_single_token(tokenizer, f" {event}")]
    starts = [
        (century, year)
        for century in CENTURIES
        for year in YEARS[2:99]
        if _splits_in_two(tokenizer, century, year)
        and _splits_in_two(tokenizer, century, CORRUPTED_YEAR)
    ]
    rng = random.Random(f"greater_than {seed}")
    combinations = [(event, *start) for event in events for start in starts]
    rng.shuffle(combinations)
    return [
        PromptPair(
            clean=TEMPLATE.format(event=event, century=century, year=year),
            corrupted=TEMPLATE.format(event=event, century=century, year=CORRUPTED_YEAR),
            answers=YEARS[int(year) + 1 :],
            wrong_answers=YEARS[: int(year) + 1],
            template="1",
        )
        for event, century, year in combinations[:n]
    ]


def _splits_in_two(tokenizer: PreTrainedTokenizerBase, century: int, year: str) -> bool:
    """Whether the tokenizer reads the four digits as century and year, as the task needs."""
    ids = token_ids(tokenizer, f" {century}{year}")
    apart = token_ids(tokenizer, f" {century}") + token_ids(tokenizer, year)
    return ids == apart and len(ids) == 2


TASK = Task(
    "greater_than",
    "the end year of an event lies after its start year; corrupted: the start year is 01",
    "prob_diff",
    _pairs,
)
