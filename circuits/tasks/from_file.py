"""A task from a file of prompt pairs: CSV or JSON lines.

Columns: `clean`, `corrupted`, `answer`, `wrong_answer`, and, if pairs are aligned with each
other, `template`. Without a template column every pair stands for itself. Every cell is text as it
stands in the file; a file that would have to be guessed at (a column twice, a row with a cell too
many, a blank template) is refused.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.prompts import PromptPair
from circuits.reading import is_there, parse_json, read_text, shown
from circuits.tasks.task import Task, task_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUIRED = ("clean", "corrupted", "answer", "wrong_answer")
TEMPLATE = "template"


def task_from_file(path: str | Path, *, metric: str = "logit_diff") -> Task:
    """Returns a task, named after the file, whose pairs are the file's rows in seeded order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix than .csv or .jsonl, the name of a registered task, or a file
            that is not read without guessing; the error names the file, the row (the first below
            the header, or the first line, is row 1) and the column.
    """
    path = Path(path)
    if not is_there(path):
        raise FileNotFoundError(f"no file of prompt pairs at {path}")
    if path.stem in task_names():
        raise ValueError(
            f"the task of {path} would be called {path.stem!r}, as a registered task is; rename "
            "the file"
        )
    if path.suffix == ".csv":
        rows = _csv_rows(path)
    elif path.suffix == ".jsonl":
        rows = _json_rows(path)
    else:
        raise ValueError(f"{path} is neither .csv nor .jsonl; a task file must be one of them")
    with_template: bool | None = None
    pairs: list[PromptPair] = []
    for number, row in enumerate(rows, start=1):
        missing = [column for column in REQUIRED if column not in row]
        if missing:
            raise ValueError(
                f"{path}: row {number} lacks the columns {', '.join(missing)}; it has "
                f"{', '.join(row) or 'none'}"
            )
        if with_template not in (None, TEMPLATE in row):
            raise ValueError(
                f"{path}: row {number} has {'a' if TEMPLATE in row else 'no'} column {TEMPLATE!r}, "
                "unlike the rows before it; give every row a template, or none"
            )
        with_template = TEMPLATE in row
        cells = {name: _text(row[name], name, f"{path}: row {number}") for name in REQUIRED}
        if with_template and not _text(row[TEMPLATE], TEMPLATE, f"{path}: row {number}").strip():
            raise ValueError(f"{path}: row {number} has a blank {TEMPLATE!r}; name the pattern")
        pairs.append(
            PromptPair(
                clean=cells["clean"],
                corrupted=cells["corrupted"],
                answers=(cells["answer"],),
                wrong_answers=(cells["wrong_answer"],),
                template=row[TEMPLATE] if with_template else f"row {number}",
            )
        )
    if not pairs:
        raise ValueError(f"{path} holds no prompt pairs; give one a row")

    def shuffled(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[PromptPair]:
        del tokenizer  # The rows are what they are; `tokenize_pairs` checks them.
        return random.Random(f"file {seed}").sample(pairs, min(n, len(pairs)))

    return Task(path.stem, f"{len(pairs)} prompt pairs of {path}", metric, shuffled)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file as its header names their cells; blank lines are left out."""
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next((line for line in lines if line), [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise ValueError(
                f"{path}: the header has the column {twice[0]!r} {header.count(twice[0])} times; "
                "name each column once"
            )
        missing = [column for column in REQUIRED if column not in header]
        if missing:
            raise ValueError(
                f"{path} lacks the columns {', '.join(missing)}; it has "
                f"{', '.join(header) or 'none'}"
            )
        for number, line in enumerate((line for line in lines if line), start=1):
            if len(line) != len(header):
                raise ValueError(
                    f"{path}: row {number} has {len(line)} cells, the header {len(header)}; quote "
                    "a text that holds a comma"
                )
            yield dict(zip(header, line, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: line {lines.line_num} is not CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; blank lines are left out."""
    lines = (line for line in read_text(path).split("\n") if line.strip())
    for number, line in enumerate(lines, start=1):
        yield parse_json(line, f"{path}: row {number}")


def _text(cell: Any, column: str, where: str) -> str:
    if not isinstance(cell, str) or not cell:
        found = "" if cell == "" else f", but {shown(cell)}"
        raise ValueError(f"{where} has no text in the column {column!r}{found}")
    return cell
