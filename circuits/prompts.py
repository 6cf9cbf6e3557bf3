"""Prompts in pairs: what a behaviour is measured on.

A behaviour is posed as pairs of prompts. The `clean` prompt asks for it; the
`corrupted` prompt is the same text with the least change that takes away what
the behaviour needs. Clean and corrupted must be aligned token by token, since
activations of one run are patched into the other at the same position. Answers
are single tokens, read off the logits at the last position of the prompt.

Prompts that share a `template` are aligned with each other as well: position 7
plays the same part in all of them. Only among those may attention edges or
per-position means be averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_ANSWER = -1
"""Fills the rows of `Prompts.answers` where a prompt has fewer answers than the longest row."""

_SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level tokenizers write a space
_TEXTS_BEFORE = ("\n", ".")  # which no tokenizer is likely to join with a word


class TooFewPrompts(ValueError):
    """A task has fewer different prompts than are needed; a smaller number may do."""


@dataclass(frozen=True)
class PromptPair:
    """One clean prompt, its corrupted twin, and the answers that tell them apart.

    Attributes:
        clean: The prompt that asks for the behaviour.
        corrupted: The minimally changed prompt, of the same number of tokens.
        answers: The right continuations, one token each (with their leading space, if any).
        wrong_answers: The wrong continuations, one token each.
        template: Names the pattern; pairs of one template are aligned position by position.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    template: str


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompt pairs, padded on the right to one length.

    Padding on the right needs no mask in a causal model: no real position sees it.

    Attributes:
        clean: Token ids, the beginning-of-sequence token first where the tokenizer has one.
        corrupted: Token ids of the corrupted twins, of the same lengths.
        lengths: Number of real tokens of each prompt.
        answers: Ids of the right answers, filled up with -1.
        wrong_answers: Ids of the wrong answers, filled up with -1.
        templates: The template of each prompt.
    """

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    answers: Int[Tensor, "batch n_answers"]
    wrong_answers: Int[Tensor, "batch n_wrong"]
    templates: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.templates)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """The position whose logits are read, of each prompt."""
        return self.lengths - 1

    def subset(self, indices: Sequence[int]) -> Prompts:
        """Returns the prompts at `indices`, padded as before."""
        rows = torch.as_tensor(list(indices), dtype=torch.long, device=self.clean.device)
        return Prompts(
            clean=self.clean[rows],
            corrupted=self.corrupted[rows],
            lengths=self.lengths[rows],
            answers=self.answers[rows],
            wrong_answers=self.wrong_answers[rows],
            templates=tuple(self.templates[i] for i in rows.tolist()),
        )

    def to(self, device: torch.device | str) -> Prompts:
        """Returns the same prompts with their tensors on `device`."""
        return Prompts(
            clean=self.clean.to(device),
            corrupted=self.corrupted.to(device),
            lengths=self.lengths.to(device),
            answers=self.answers.to(device),
            wrong_answers=self.wrong_answers.to(device),
            templates=self.templates,
        )

    def groups(self) -> dict[str, list[int]]:
        """Returns the indices of the prompts of each template, in order of appearance."""
        found: dict[str, list[int]] = {}
        for index, template in enumerate(self.templates):
            found.setdefault(template, []).append(index)
        return found


def is_single_token(tokenizer: PreTrainedTokenizerBase, text: str, *, begins: bool = False) -> bool:
    """Returns whether `text` is exactly one known token, within a text or where it `begins` one."""
    ids = token_ids(tokenizer, text) if begins else continuation_ids(tokenizer, text)
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of `text` as it stands, without tokens that mark begin or end."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [int(i) for i in ids]  # type: ignore[arg-type]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of `text` where other text stands before it, as before an answer.

    They are those of `token_ids`, but for tokenizers that put a space before the first word of a
    text (SentencePiece's, such as Llama 2's): " Mary" alone has two spaces there, and "3" has one.
    """
    ids = token_ids(tokenizer, text)
    first = tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "a")[:1])
    if not first or not str(first[0]).startswith(_SPACES):
        return ids
    for before in _TEXTS_BEFORE:
        ids_before, both = (token_ids(tokenizer, part) for part in (before, before + text))
        if both[: len(ids_before)] == ids_before:
            return both[len(ids_before) :]
    return ids


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PromptPair]) -> Prompts:
    """Returns the pairs as tensors, after checking that patching between them makes sense.

    Raises:
        ValueError: no pairs; a word that the tokenizer does not know; an answer that is not one
            token; a right answer that is also a wrong one; clean and corrupted of unequal length
            or equal throughout; prompts of one template of unequal length. All faults are
            collected and the first few shown.
    """
    if not pairs:
        raise ValueError("no prompt pairs; a task needs at least one")
    faults: list[str] = []
    template_length: dict[str, int] = {}
    clean, corrupted, answers, wrong = [], [], [], []
    known: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs, start=1):
        fault, rows = _tokenize_pair(tokenizer, pair, known)
        if fault is None:
            length = template_length.setdefault(pair.template, len(rows[0]))
            if length != len(rows[0]):
                fault = (
                    f"has {len(rows[0])} tokens, others of template {pair.template!r} have "
                    f"{length}; give it a template of its own"
                )
        if fault is not None:
            faults.append(f"pair {number} ({pair.clean!r}): {fault}")
            continue
        for column, row in zip((clean, corrupted, answers, wrong), rows, strict=True):
            column.append(row)
    if faults:
        more = f"\n... and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError("bad prompt pairs:\n" + "\n".join(faults[:5]) + more)
    padding = _padding_id(tokenizer)
    return Prompts(
        clean=_pad(clean, padding),
        corrupted=_pad(corrupted, padding),
        lengths=torch.tensor([len(row) for row in clean]),
        answers=_pad(answers, NO_ANSWER),
        wrong_answers=_pad(wrong, NO_ANSWER),
        templates=tuple(pair.template for pair in pairs),
    )


def why_unfit(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> str | None:
    """Returns why `tokenize_pairs` refuses this pair by itself; None where it does not."""
    return _tokenize_pair(tokenizer, pair, {})[0]


def _tokenize_pair(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, known: dict[str, list[int]]
) -> tuple[str | None, tuple[list[int], list[int], list[int], list[int]]]:
    """Returns what is wrong with the pair, if anything, and its four rows of token ids.

    The ids of answers are looked up in `known`, and kept there: most pairs share them.
    """
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]  # type: ignore[arg-type]
    clean, corrupted = (start + token_ids(tokenizer, text) for text in (pair.clean, pair.corrupted))
    answers: list[int] = []
    wrong: list[int] = []
    rows = (clean, corrupted, answers, wrong)
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown != tokenizer.bos_token_id and unknown in clean + corrupted:
        return "holds a word that the tokenizer does not know", rows
    if len(clean) != len(corrupted):
        return (
            f"clean has {len(clean)} tokens, corrupted {pair.corrupted!r} has {len(corrupted)}; "
            "they must be aligned token by token",
            rows,
        )
    if clean == corrupted:
        return "clean and corrupted are the same tokens", rows
    for column, texts in ((answers, pair.answers), (wrong, pair.wrong_answers)):
        if not texts:
            return "lacks an answer or a wrong answer", rows
        for text in texts:
            if text not in known:
                known[text] = continuation_ids(tokenizer, text)
            ids = known[text]
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                return (
                    f"the answer {text!r} is not one token for this tokenizer but {len(ids)} "
                    f"({tokenizer.convert_ids_to_tokens(ids)}); use a word that is one token, "
                    "with its leading space if the tokenizer marks one",
                    rows,
                )
            column.append(ids[0])
    if set(answers) & set(wrong):
        return "a right answer is also a wrong one", rows
    return None, rows


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if candidate is not None:
            return int(candidate)  # type: ignore[arg-type]
    return 0


def _pad(rows: list[list[int]], filler: int) -> Int[Tensor, "batch length"]:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
