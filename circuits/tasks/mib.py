"""Tasks of the MIB benchmark's circuit track (Mueller et al. 2025, arXiv 2504.13151).

The benchmark leaves out rows by their tokens: names, or answers, of different numbers of tokens;
sums of several tokens. Those are left out and counted here too. What it keeps but patching cannot
use is refused by row: prompts of unequal length, and answers of several tokens each, of which the
benchmark compares the first. `circuits.tasks.mib_rows` says what a row asks.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.choices import MIB_TASKS, MibTask, check_choice, spelled
from circuits.prompts import PromptPair, Prompts, TooFewPrompts, tokenize_pairs, why_unfit
from circuits.tasks.mib_rows import MIB_SOURCES, counterfactual_name, pair_of, rows_of
from circuits.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "mib:"
"""What a task of the benchmark begins with where tasks are named."""
UNFIT = "unequal lengths, or an answer of several tokens"


@dataclass(frozen=True)
class MibPairs:
    """Prompt pairs of the benchmark, in the order of the rows.

    Attributes:
        pairs: The pairs.
        left_out: How many rows before the last pair were left out, by reason.
    """

    pairs: tuple[PromptPair, ...]
    left_out: dict[str, int]


def mib_pairs(
    task: MibTask | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Path | None = None,
    split: str = "train",
    counterfactual: str | None = None,
    n: int | None = None,
    skip_unfit: bool = False,
) -> MibPairs:
    """Returns the first `n` pairs of a task, or all of them, for a tokenizer.

    Args:
        task: The name of the task in `circuits.choices.MIB_TASKS`.
        tokenizer: The model's tokenizer.
        data: In place of the hub: a .jsonl or .parquet file with the data set's columns, or a
            folder with one for each split (`train.jsonl`, `validation-00000-of-00001.parquet`).
        split: train, validation or test; a file is read whatever it is called.
        counterfactual: The name of the counterfactual, such as `abc_counterfactual` or `abc`; the
            benchmark's own for the task if left out.
        n: How many pairs; all where there are fewer.
        skip_unfit: Leave out, and count, rows that patching cannot use; else they are refused.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: a row without what the task needs, or one that cannot be used; the error names
            the file, the row (the first is row 1) and what to do.
        TooFewPrompts: no row is left.
    """
    task = mib_task_name(task)
    found: list[PromptPair] = []
    left_out: Counter[str] = Counter()
    name = counterfactual_name(task, counterfactual)
    for where, row in rows_of(task, data, split):
        if n is not None and len(found) >= n:
            break
        pair = pair_of(task, row, name, tokenizer, where)
        if isinstance(pair, str):
            left_out[pair] += 1
        elif (fault := why_unfit(tokenizer, pair)) is None:
            found.append(pair)
        elif skip_unfit:
            left_out[UNFIT] += 1
        else:
            raise ValueError(
                f"{where} cannot be used: {fault}. Take the row out, or leave such rows out with "
                "skip_unfit=True (--skip-unfit)"
            )
    if not found:
        reasons = "; ".join(f"{count} with {reason}" for reason, count in left_out.items())
        raise TooFewPrompts(
            f"no row of {data or MIB_SOURCES[task].dataset} is left for {task} and this tokenizer "
            f"({reasons or 'there is none'}); give other rows, or a model with another tokenizer"
        )
    return MibPairs(tuple(found), dict(left_out))


@dataclass(frozen=True)
class MibPrompts:
    """Prompts to rank on and to measure on.

    Attributes:
        ranking: Prompts on which components are scored.
        evaluation: Others, on which the ten circuits are measured.
        left_out: How many rows were left out before the last prompt, by reason.
    """

    ranking: Prompts
    evaluation: Prompts
    left_out: dict[str, int]


def mib_prompts(
    task: MibTask | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Path | None = None,
    rank_split: str = "train",
    split: str = "validation",
    counterfactual: str | None = None,
    n: int = 100,
    skip_unfit: bool = False,
) -> MibPrompts:
    """Returns the first `n` rows of one split to rank on, and of another to measure on.

    Where there are fewer, all of them. A single file has no splits: its first `n` rows rank, and as
    many that follow are measured on; of fewer than that, the first half ranks. Arguments are
    otherwise those of `mib_pairs`.

    Raises:
        FileNotFoundError: as for `mib_pairs`.
        ValueError: as for `mib_pairs`; or the two splits are one.
        TooFewPrompts: no row is left, or only one in a file.
    """

    def read(part: str, n: int) -> MibPairs:
        return mib_pairs(
            task,
            tokenizer,
            data=data,
            split=part,
            counterfactual=counterfactual,
            n=n,
            skip_unfit=skip_unfit,
        )

    if data is not None and Path(data).is_file():
        both = read(split, 2 * n)
        half = len(both.pairs) // 2
        if not half:
            raise TooFewPrompts(
                f"{data} has one row to use; two are needed, to rank and to measure"
            )
        parts, left_out = (both.pairs[:half], both.pairs[half : 2 * half]), Counter(both.left_out)
    else:
        if rank_split == split:
            raise ValueError(f"the split {split!r} cannot both rank and measure; give another one")
        ranking, evaluation = read(rank_split, n), read(split, n)
        parts = (ranking.pairs, evaluation.pairs)
        left_out = Counter(ranking.left_out) + Counter(evaluation.left_out)
    ranking, evaluation = (tokenize_pairs(tokenizer, part) for part in parts)
    return MibPrompts(ranking, evaluation, dict(left_out))


def mib_task(
    task: MibTask | str,
    *,
    data: str | Path | None = None,
    split: str = "train",
    counterfactual: str | None = None,
    skip_unfit: bool = False,
) -> Task:
    """Returns a task of the benchmark as one of ours, named `mib_ioi` and so on.

    Its pairs are the rows with different prompts, in seeded order; each row is its own template.
    Arguments are those of `mib_pairs`.

    Raises:
        ValueError: there is no such task.
    """
    task = mib_task_name(task)

    def shuffled(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
        read = mib_pairs(
            task,
            tokenizer,
            data=data,
            split=split,
            counterfactual=counterfactual,
            skip_unfit=skip_unfit,
        )
        different = list({pair.clean: pair for pair in read.pairs}.values())
        return random.Random(f"mib {seed}").sample(different, min(n, len(different)))

    source = data or f"{MIB_SOURCES[task].dataset} ({split})"
    return Task(f"mib_{task}", f"{task} of the MIB benchmark, {source}", "logit_diff", shuffled)


def mib_task_name(task: str) -> MibTask:
    """Returns the task as it is written here: `arithmetic-addition` is `arithmetic_addition`.

    Raises:
        ValueError: there is no such task.
    """
    name = spelled(task, MIB_TASKS)
    check_choice("MIB task", name, MIB_TASKS)
    return name  # type: ignore[return-value]  # checked
