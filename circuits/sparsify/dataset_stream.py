"""Packed token sequences from a Hugging Face dataset: a hub name, or local files.

Documents are read as a stream, so a dataset larger than the disk will do. A document is held out
or not by a digest of its text alone, wherever it stands, so that equal documents fall on one side
and the held-out sets do not depend on how far the training has read. Documents are shuffled within
a window, in an order that the seed decides, and so are the rows that they are cut into: else a
batch would be a few long documents, and its gradient theirs. A run that resumes reads the stream
again up to where it was: the position needs no state but the step.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.seeds import number_of
from circuits.sparsify.data import (
    HeldOut,
    check_context,
    check_part,
    separator_of,
    token_ids_of,
    tokenizer_digest,
)

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""File endings, and the reader of `datasets` for each."""
ORDER = "rows shuffled"
"""Names how documents become batches: a run cannot be resumed with another way."""
_CHUNK = 64  # documents tokenized together
_WINDOW = 1000  # documents shuffled together
_ROW_WINDOW = 2**20  # tokens whose rows are shuffled together
_SPREAD = 4  # a held-out set is every fourth row of what the stream begins with


class DatasetStream:
    """Sequences of the documents in one column of a dataset, without padding."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        context: int,
        seed: int = 0,
        column: str = "text",
        subset: str | None = None,
        split: str = "train",
        held_out_fraction: float = 0.01,
    ) -> None:
        """Opens the dataset and looks at its first document.

        Args:
            name: a dataset on the hub, or a file ending in .jsonl, .json, .csv, .parquet or .txt
                (one document a line).
            tokenizer: the model's tokenizer.
            context: tokens per sequence.
            seed: of the order of documents.
            column: the column that holds the text.
            subset: the hub dataset's configuration, where it has several.
            split: the part of the dataset to read.
            held_out_fraction: fraction of the documents kept for the two held-out sets together.

        Raises:
            ValueError: an unknown file ending, no document, or no such column.
            FileNotFoundError: no such file, or no such dataset on the hub.
        """
        check_context(context)
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is {held_out_fraction}; it must be in (0, 1)")
        self.context = context
        self._name, self._subset, self._split, self._column = name, subset, split, column
        self._tokenizer, self._separator = tokenizer, separator_of(tokenizer)
        self._seed, self._held_out_fraction = seed, held_out_fraction
        self._dataset, self._digest = _open(name, subset, split)
        first = next(iter(self._dataset), None)
        if first is None:
            raise ValueError(f"the dataset {name} holds no documents")
        if not isinstance(first.get(column), str):
            raise ValueError(
                f"the dataset {name} has no column {column!r} of text; its columns are "
                f"{', '.join(map(str, first))}"
            )
        self._next_row, self._last_asked = 0, (-1, 0)
        self._rows: Iterator[list[int]] = iter(())

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "batch pos"]:
        """Returns the training batch of this step, the same whenever it is asked for.

        Asking for steps in order costs nothing extra, nor does asking for one again; any other step
        reads the stream again.
        """
        if (step, batch_size) != self._last_asked:
            first = step * batch_size
            if first < self._next_row or self._next_row == 0:
                self._rows, self._next_row = self._training_rows(), 0
            for _ in range(first - self._next_row):
                next(self._rows)
            self._last_batch = torch.tensor(list(itertools.islice(self._rows, batch_size)))
            self._next_row, self._last_asked = first + batch_size, (step, batch_size)
        return self._last_batch.clone()

    def held_out(self, part: HeldOut | str, n_sequences: int) -> Int[Tensor, "batch pos"]:
        """Returns `n_sequences` of a held-out set, or all it has if that is less.

        They lie apart, so that a few of them still come from many documents.

        Raises:
            ValueError: the held-out documents do not fill one sequence.
        """
        check_part(part)
        rows = list(itertools.islice(self._rows_of(part, self._dataset), _SPREAD * n_sequences))
        n_sequences = min(n_sequences, len(rows))
        return torch.tensor([rows[i * len(rows) // n_sequences] for i in range(n_sequences)])

    def describe(self) -> dict[str, Any]:
        """Returns what decides the tokens: the source, its split, context, seed and tokenizer."""
        return {
            "kind": "dataset",
            "name": self._name if self._digest is None else Path(self._name).name,
            "digest": self._digest,
            "subset": self._subset,
            "split": self._split,
            "column": self._column,
            "context": self.context,
            "seed": self._seed,
            "held_out_fraction": self._held_out_fraction,
            "order": ORDER,
            "tokenizer": tokenizer_digest(self._tokenizer),
        }

    def _training_rows(self) -> Iterator[list[int]]:
        """Training rows without end, in another order each time around."""
        for epoch in itertools.count():
            seed = number_of(f"{self._seed}/{epoch}")
            documents = self._dataset.shuffle(seed=seed % 2**32, buffer_size=_WINDOW)
            rows = self._rows_of("train", documents)
            yield from _shuffled(rows, max(1, _ROW_WINDOW // self.context), random.Random(seed))

    def _rows_of(self, part: str, dataset: Any) -> Iterator[list[int]]:
        """The rows of one part; a part without any is refused."""
        rows = self._pack(text for text in self._texts(dataset) if self._part_of(text) == part)
        first = next(rows, None)
        if first is None:
            raise ValueError(
                f"the {part} documents of {self._name} do not fill one sequence of "
                f"{self.context} tokens; give more text or a smaller context"
            )
        yield first
        yield from rows

    def _texts(self, dataset: Any) -> Iterator[str]:
        for row in dataset:
            text = row[self._column]
            if text and text.strip():
                yield text

    def _part_of(self, text: str) -> str:
        place = number_of(text) / 2**63
        if place >= self._held_out_fraction:
            return "train"
        return "control" if place < self._held_out_fraction / 2 else "selection"

    def _pack(self, documents: Iterator[str]) -> Iterator[list[int]]:
        """Rows of `context` tokens; what the last documents leave over is dropped."""
        ids: list[int] = []
        while chunk := list(itertools.islice(documents, _CHUNK)):
            ids += token_ids_of(self._tokenizer, self._separator, chunk)
            n_rows = len(ids) // self.context
            for row in range(n_rows):
                yield ids[row * self.context : (row + 1) * self.context]
            del ids[: n_rows * self.context]


def _shuffled(rows: Iterator[list[int]], window: int, order: random.Random) -> Iterator[list[int]]:
    """The same rows, each drawn from the next `window` of those that are left."""
    held = list(itertools.islice(rows, window))
    for row in rows:
        place = int(order.random() * window)
        yield held[place]
        held[place] = row
    yield from sorted(held, key=lambda _: order.random())


def _open(name: str, subset: str | None, split: str) -> tuple[Any, str | None]:
    """The dataset as a stream, and a digest of its bytes if it is a local file."""
    path = Path(name)
    if path.suffix in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {name}")
        found = datasets.load_dataset(
            READERS[path.suffix], data_files=str(path), split="train", streaming=True
        )
        with path.open("rb") as file:
            return found, hashlib.file_digest(file, "sha256").hexdigest()
    if path.exists():
        raise ValueError(f"{name} is not a file of text; known endings are {', '.join(READERS)}")
    try:
        return datasets.load_dataset(name, subset, split=split, streaming=True), None
    except (ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"the dataset {name!r} is neither a file here nor to be had from the hub: {error}"
        ) from error
