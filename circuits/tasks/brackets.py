"""Brackets of source code: "x = items[key" is continued with "]", "x = items(key" with ")".

The metric is the logit of the bracket that closes the open one minus that of the other. The
corrupted prompt has the other bracket in the same place, so the model must carry its kind over the
name between. For models that have read code, such as `gpt2` and the embedded `code-dense`.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from circuits.prompts import PromptPair, continuation_ids, is_single_token
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
    inner = _aligned(tokenizer, outer, inner)
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


def _aligned(tokenizer: PreTrainedTokenizerBase, outer: list[str], inner: list[str]) -> list[str]:
    """The inner names that make as many tokens with either bracket, and as many as each other.

    Tokenizers of code may join a bracket with the name behind it, "(name" more often than "[name".
    """
    n_tokens = {
        name: {
            len(continuation_ids(tokenizer, f" {before}{mark}{name}"))
            for before in outer
            for mark in CLOSING
        }
        for name in inner
    }
    lengths = Counter(max(found) for found in n_tokens.values() if len(found) == 1)
    if not lengths:
        raise ValueError(
            "the tokenizer joins one kind of bracket with the names behind it, not the other, so "
            "that prompts with the one and the other cannot be aligned"
        )
    (usual, _), *_ = lengths.most_common(1)
    return [name for name, found in n_tokens.items() if found == {usual}]


TASK = Task(
    "brackets",
    "code: what closes an open bracket; corrupted: the other kind of bracket",
    "logit_diff",
    _pairs,
)
