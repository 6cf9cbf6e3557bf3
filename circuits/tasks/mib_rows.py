"""The rows of the MIB benchmark's circuit track: where they are, and what each of them asks.

Source of the columns, of each task's counterfactual and of the rows that are left out: arXiv
2504.13151, the data sets `mib-bench/*` on the Hugging Face hub, and how the benchmark's code
(github.com/hannamw/MIB-circuit-track) reads them. Every row has a `prompt`, and next to it structs
named `..._counterfactual` with a prompt of their own. The right answer is that of the row. The
wrong one is the subject's name in `ioi`, and else the counterfactual's own answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.choices import MibTask
from circuits.prompts import PromptPair, continuation_ids
from circuits.reading import is_there, parse_json, read_text, refused_as, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUFFIXES = (".jsonl", ".parquet")
_ENDING = "_counterfactual"


@dataclass(frozen=True)
class MibSource:
    """Where the rows of a task are on the hub, and what they are contrasted with.

    Attributes:
        dataset: The data set's name.
        subset: Its configuration, where it has several.
        counterfactual: The counterfactual that the benchmark uses.
        operator: Of arithmetic: the operator of the rows that count.
    """

    dataset: str
    subset: str | None
    counterfactual: str
    operator: str | None = None


MIB_SOURCES: dict[MibTask, MibSource] = {
    "ioi": MibSource("mib-bench/ioi", None, "s2_io_flip_counterfactual"),
    "mcqa": MibSource("mib-bench/copycolors_mcqa", "4_answer_choices", "symbol_counterfactual"),
    "arithmetic_addition": MibSource(
        "mib-bench/arithmetic_addition", None, "random_counterfactual", "+"
    ),
    "arithmetic_subtraction": MibSource(
        "mib-bench/arithmetic_subtraction", None, "random_counterfactual", "-"
    ),
    "arc_easy": MibSource("mib-bench/arc_easy", None, "symbol_counterfactual"),
    "arc_challenge": MibSource("mib-bench/arc_challenge", None, "symbol_counterfactual"),
}
"""The benchmark's tasks by name."""


def counterfactual_name(task: MibTask, name: str | None) -> str:
    """Returns the column of a name like `abc` or `abc_counterfactual`; for None the task's own."""
    if name is None:
        return MIB_SOURCES[task].counterfactual
    return name if name.endswith(_ENDING) else f"{name}{_ENDING}"


def rows_of(
    task: MibTask, data: str | Path | None, split: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what to call each row in errors, and the row.

    Args:
        task: The task.
        data: A file, or a folder with files for each split; the hub where it is None.
        split: Which rows of the hub, or files of the folder.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: a file that is not of rows.
    """
    if data is None:
        source = f"{MIB_SOURCES[task].dataset} ({split})"
        for number, row in enumerate(_from_hub(task, split), start=1):
            yield f"{source}: row {number}", row
        return
    for path in _files(Path(data), split):
        for number, row in enumerate(_from_file(path), start=1):
            yield f"{path}: row {number}", row


def _files(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        if not is_there(path):
            raise FileNotFoundError(f"there are no rows at {path}")
        if path.suffix not in _SUFFIXES:
            raise ValueError(f"{path} ends in none of {', '.join(_SUFFIXES)}; rows are in these")
        return [path]
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix in _SUFFIXES and (file.stem == split or file.stem.startswith(f"{split}-"))
    )
    if not found:
        raise FileNotFoundError(
            f"the folder {path} has no rows of the split {split!r}; they are looked for as "
            f"{split}.jsonl, {split}.parquet or {split}-....parquet"
        )
    return found


def _from_file(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        lines = (line for line in read_text(path).split("\n") if line.strip())
        for number, line in enumerate(lines, start=1):
            yield parse_json(line, f"{path}: row {number}")
        return
    import pyarrow.parquet

    with refused_as(str(path), "it is not a Parquet file"):
        table = pyarrow.parquet.read_table(path)
    yield from table.to_pylist()


def _from_hub(task: MibTask, split: str) -> Iterator[dict[str, Any]]:
    import datasets

    source = MIB_SOURCES[task]
    try:
        rows: Any = datasets.load_dataset(source.dataset, source.subset, split=split)
    except (ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"{source.dataset} is not to be had from the hub ({error}); give its rows as a local "
            "file or folder (data=, --data)"
        ) from error
    yield from rows


def pair_of(
    task: MibTask,
    row: dict[str, Any],
    counterfactual: str,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> PromptPair | str:
    """Returns the pair of a row, or why the benchmark leaves the row out.

    Raises:
        ValueError: the row lacks something, which the error names after `where`.
    """

    def n_tokens(text: str) -> int:
        return len(continuation_ids(tokenizer, text))

    clean = _get(row, "prompt", str, where)
    if task == "ioi":
        people = _get(row, "metadata", dict, where)
        object_, subject = (
            f" {_get(row, f'metadata.{part}', str, where)}"
            for part in ("indirect_object", "subject")
        )
        names = [object_, subject]
        if people.get("random_c") is not None:  # Early versions of the data lack the third name.
            names.append(f" {_get(row, 'metadata.random_c', str, where)}")
        if len({n_tokens(name) for name in names}) > 1:
            return "names of different numbers of tokens"
        right, wrong = object_, subject
        corrupted = _get(row, f"{counterfactual}.prompt", str, where)
    elif (operator := MIB_SOURCES[task].operator) is not None:
        if _get(row, "operator", str, where) != operator:
            return "another operator"
        if counterfactual in row and (row[counterfactual] or {}).get("prompt") is None:
            return "no counterfactual"
        corrupted = _get(row, f"{counterfactual}.prompt", str, where)
        right, wrong = (
            str(_get(row, f"{part}label", int | str, where)) for part in ("", f"{counterfactual}.")
        )
        if n_tokens(right) != 1 or n_tokens(wrong) != 1:
            return "a number of several tokens"
    else:
        corrupted = _get(row, f"{counterfactual}.prompt", str, where)
        right = _chosen(row, "", where)
        wrong = _chosen(row, f"{counterfactual}.", where)
        if n_tokens(right) != n_tokens(wrong):
            return "answers of different numbers of tokens"
    return PromptPair(clean, corrupted, (right,), (wrong,), template=where)


def _chosen(row: dict[str, Any], part: str, where: str) -> str:
    """The label of the right choice, in the row or in a counterfactual."""
    labels = _get(row, f"{part}choices.label", list, where)
    key = _get(row, f"{part}answerKey", int, where)
    if not 0 <= key < len(labels):
        raise ValueError(
            f"{where}: {part}answerKey is {key}, but there are {len(labels)} choices; give the "
            "place of the right one, from 0"
        )
    return str(labels[key])


def _get(row: dict[str, Any], path: str, kind: Any, where: str) -> Any:
    """The value at a path of names, of the kind that it must be."""
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, dict) or value.get(name) is None:
            if name.endswith(_ENDING):
                there = [
                    column for column in row if column.endswith(_ENDING) and row[column] is not None
                ]
                raise ValueError(
                    f"{where} has no {name}; it has {', '.join(there) or 'no counterfactual'}. "
                    "Choose another one with counterfactual= (--counterfactual), or take the row "
                    "out"
                )
            raise ValueError(
                f"{where} has no {path}; give rows with the columns of the benchmark's data set"
            )
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, kind) or value == "":
        raise ValueError(f"{where}: {path} is {shown(value)}, which it cannot be in MIB's rows")
    return value
