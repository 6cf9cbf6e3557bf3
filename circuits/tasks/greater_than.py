"""Greater-than over years (Hanna et al. 2023, arXiv 2305.00586).

"The war lasted from the year 1732 to the year 17" is continued with a year above 32. Where the
tokenizer reads two digits as one token, as the source's does, the right answers are 33 to 99 and
the wrong ones 00 to 32. Where it reads digit by digit, the next token is the tens digit: those
above the start year's (4 to 9) are right, those below (0 to 2) wrong, and the same one (3), after
which the end year may lie on either side, is neither. The metric is the probability of all right
answers minus that of all wrong ones. The corrupted prompt starts in year 01, after which nearly
every year is allowed, so that it says nothing about where to cut.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, continuation_ids, is_single_token
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
DIGITS = tuple("0123456789")
CORRUPTED_YEAR = "01"


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    in_pairs = all(is_single_token(tokenizer, year) for year in YEARS)
    starts = _starts(tokenizer, YEARS[2:99], n_digits=2) if in_pairs else []
    if not starts:  # No year below 10 or above 89: its tens digit has none below, or above, it.
        in_pairs, starts = False, _starts(tokenizer, YEARS[10:90], n_digits=1)
    if not starts:
        raise ValueError(_why_not(tokenizer))
    events = [event for event in EVENTS if is_single_token(tokenizer, f" {event}")]
    rng = random.Random(f"greater_than {seed}")
    combinations = [(event, *start) for event in events for start in starts]
    rng.shuffle(combinations)
    return [
        PromptPair(
            clean=TEMPLATE.format(event=event, century=century, year=year),
            corrupted=TEMPLATE.format(event=event, century=century, year=CORRUPTED_YEAR),
            answers=YEARS[int(year) + 1 :] if in_pairs else DIGITS[int(year[0]) + 1 :],
            wrong_answers=YEARS[: int(year) + 1] if in_pairs else DIGITS[: int(year[0])],
            template="1",
        )
        for event, century, year in combinations[:n]
    ]


def _starts(
    tokenizer: PreTrainedTokenizerBase, years: tuple[str, ...], *, n_digits: int
) -> list[tuple[int, str]]:
    """The start years, as century and year, whose year is read in tokens of `n_digits` digits."""

    @cache
    def read(text: str) -> list[int]:
        return continuation_ids(tokenizer, text)

    def fits(century: int, year: str) -> bool:
        apart = [year[start : start + n_digits] for start in range(0, 2, n_digits)]
        tokens = [read(part) for part in apart]
        before, whole = read(f" {century}"), read(f" {century}{year}")
        is_one_each = all(len(ids) == 1 and ids[0] != tokenizer.unk_token_id for ids in tokens)
        # A century of one token stands for itself; one of several has a token for each digit,
        # and for the space before them where that is none of theirs.
        is_century = len(before) == 1 if n_digits == 2 else 2 <= len(before) <= 3
        return is_one_each and is_century and whole == before + [ids[0] for ids in tokens]

    return [
        (century, year)
        for century in CENTURIES
        if fits(century, CORRUPTED_YEAR)
        for year in years
        if fits(century, year)
    ]


def _why_not(tokenizer: PreTrainedTokenizerBase) -> str:
    """How the tokenizer reads a year that the task can be posed on with no tokenizer like it."""
    read = tokenizer.convert_ids_to_tokens(continuation_ids(tokenizer, " 1732"))
    return (
        "greater_than needs a tokenizer that reads numbers digit by digit, or years as a token for "
        f"the century and one for the two digits behind it; this one reads ' 1732' as {read}"
    )


TASK = Task(
    "greater_than",
    "the end year of an event lies after its start year; corrupted: the start year is 01",
    "prob_diff",
    _pairs,
)
