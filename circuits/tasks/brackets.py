"""Brackets of source code: "x = items[key" is continued with "]", "x = items(key" with ")".

The metric is the logit of the bracket that closes the open one minus that of the other. The
corrupted prompt has the other bracket in the same place, so the model must carry its kind over the
name between. For models that have read code, such as `gpt2` and the embedded `code-dense`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, is_single_token
from circuits.tasks.draw import draw_pairs
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = (
    "    if {outer}{open}{inner}",
    "    return {outer}{open}{inner}",
    "    x = {outer}{open}{inner}",
    "    for item in {outer}{open}{inner}",
    "    self.value = {outer}{open}{inner}",
    "    print(x, y)\n    z = {outer}{open}{inner}",
)
OUTER = "data args items values names lines result key value list dict path self line item".split()
INNER = "name key value index i n x line path item self node result data k size count text".split()
CLOSING = {"[": "]", "(": ")"}


def _pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
    outer = [name for name in OUTER if is_single_token(tokenizer, f" {name}")]
    inner = [name for name in INNER if is_single_token(tokenizer, name)]
    brackets = [mark for pair in CLOSING.items() for mark in pair]
    if not (outer and inner and all(is_single_token(tokenizer, mark) for mark in brackets)):
        raise ValueError(
            "the tokenizer has no single tokens for brackets and the names of variables; the task "
            "is for models that have read code"
        )
    rng = random.Random(f"brackets {seed}")

    def draw(attempt: int) -> PromptPair:
        template = TEMPLATES[attempt % len(TEMPLATES)]
        right, wrong = ("[", "(") if attempt // len(TEMPLATES) % 2 else ("(", "[")
        names = {"outer": rng.choice(outer), "inner": rng.choice(inner)}
        clean = template.format(open=right, **names)
        return PromptPair(
            clean=clean,
            corrupted=template.format(open=wrong, **names),
            answers=(CLOSING[right],),
            wrong_answers=(CLOSING[wrong],),
            template=f"{TEMPLATES.index(template) + 1}{right}",
        )

    return draw_pairs(n, draw)


TASK = Task(
    "brackets",
    "code: what closes an open bracket; corrupted: the other kind of bracket",
    "logit_diff",
    _pairs,
)
