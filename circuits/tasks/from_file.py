"""A task from a file of prompt pairs: CSV or JSON lines.

Columns: `clean`, `corrupted`, `answer`, `wrong_answer`, and, if pairs are aligned with each
other, `template`. Without a template column every pair stands for itself.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from circuits.tasks.prompts import PromptPair
from circuits.tasks.task import Task, task_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUIRED = ("clean", "corrupted", "answer", "wrong_answer")


def task_from_file(path: str | Path, *, metric: str = "logit_diff") -> Task:
    """Returns a task, named after the file, whose pairs are the file's rows in seeded order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix than .csv or .jsonl, the name of a registered task, missing
            columns, or empty cells.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompt pairs at {path}")
    if path.stem in task_names():
        raise ValueError(
            f"the task of {path} would be called {path.stem!r}, as a registered task is; rename "
            "the file"
        )
    # Texts only: "01" must not become the number 1, nor "NA" a missing value.
    if path.suffix == ".csv":
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    elif path.suffix == ".jsonl":
        rows = pd.DataFrame(json.loads(line) for line in path.read_text().splitlines() if line)
    else:
        raise ValueError(f"{path} is neither .csv nor .jsonl; a task file must be one of them")
    missing = [column for column in REQUIRED if column not in rows.columns]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(rows.columns)}"
        )
    for column in REQUIRED:
        for number, cell in enumerate(rows[column], start=1):
            if not isinstance(cell, str) or not cell:
                raise ValueError(f"{path}: row {number} has no text in the column {column!r}")
    pairs = [
        PromptPair(
            clean=str(row["clean"]),
            corrupted=str(row["corrupted"]),
            answers=(str(row["answer"]),),
            wrong_answers=(str(row["wrong_answer"]),),
            template=str(row["template"]) if "template" in row else f"row {number}",
        )
        for number, row in enumerate(rows.to_dict("records"), start=1)
    ]

    def shuffled(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
        del tokenizer  # The rows are what they are; `tokenize_pairs` checks them.
        return random.Random(f"file {seed}").sample(pairs, min(n, len(pairs)))

    return Task(path.stem, f"{len(pairs)} prompt pairs of {path}", metric, shuffled)
