"""Packed token sequences for post-training: documents end to end, cut at a fixed context.

Every document follows a separator (the begin-of-sequence token, or the end-of-text token where a
tokenizer has none), and the stream of ids is cut into rows of `context` tokens, so no position is
padding. A training batch depends on (seed, step) only: a run that resumes needs no state of the
data but its step. Two held-out sets are disjoint from the training data and from each other:
`control` drives the multiplier while training, `selection` bounds and judges the result.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.seeds import number_of
from circuits.tasks.corpus import documents

HeldOut = Literal["control", "selection"]
"""Which held-out set."""

_PARTS = ("train", "control", "selection")
_SEEDS_PER_PART = 2**60  # the seeds of the corpus, cut into one range for each part
_CHUNK = 64  # documents tokenized together


@runtime_checkable
class TokenStream(Protocol):
    """Where post-training takes its tokens from."""

    @property
    def context(self) -> int:
        """Tokens per sequence."""
        ...

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "batch pos"]:
        """Returns the training batch of this step, the same whenever it is asked for."""
        ...

    def held_out(self, part: HeldOut | str, n_sequences: int) -> Int[Tensor, "batch pos"]:
        """Returns `n_sequences` of a held-out set, or all it has if that is less."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what decides the tokens, as JSON; equal descriptions mean equal tokens."""
        ...


class CorpusStream:
    """Sequences of the synthetic corpus; train, control and selection have ranges of seeds."""

    def __init__(
        self, tokenizer: Any, *, context: int, seed: int = 0, behaviours: tuple[str, ...] = ()
    ) -> None:
        """Sets up the stream; `behaviours` restricts the corpus to some of its behaviours."""
        check_context(context)
        self._behaviours = behaviours
        self._tokenizer = tokenizer
        self._separator = separator_of(tokenizer)
        self._seed = seed
        self.context = context

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "batch pos"]:
        """Returns the training batch of this step."""
        return self._rows("train", step, batch_size)

    def held_out(self, part: HeldOut | str, n_sequences: int) -> Int[Tensor, "batch pos"]:
        """Returns `n_sequences` of a held-out set."""
        check_part(part)
        return self._rows(part, 0, n_sequences)

    def describe(self) -> dict[str, Any]:
        """Returns kind, context, seed and a digest of the tokenizer."""
        return {
            "kind": "synthetic corpus",
            "behaviours": list(self._behaviours) or "all",
            "context": self.context,
            "seed": self._seed,
            "tokenizer": tokenizer_digest(self._tokenizer),
        }

    def _rows(self, part: str, step: int, n_rows: int) -> Tensor:
        number = number_of(f"{self._seed}/{part}/{step}") % _SEEDS_PER_PART
        stream = documents(_PARTS.index(part) * _SEEDS_PER_PART + number, self._behaviours)
        ids: list[int] = []
        while len(ids) < n_rows * self.context:
            chunk = list(itertools.islice(stream, _CHUNK))
            ids += token_ids_of(self._tokenizer, self._separator, chunk)
        return torch.tensor(ids[: n_rows * self.context]).view(n_rows, self.context)


class TextStream:
    """Sequences of a UTF-8 text file whose documents are set apart by blank lines.

    Documents are ranked by a digest of their text, and the first of them are held out, in turn
    for control and for selection; equal documents always fall on one side. Training rows are
    shuffled anew every epoch.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: Any,
        *,
        context: int,
        seed: int = 0,
        held_out_fraction: float = 0.1,
    ) -> None:
        """Reads, splits and tokenizes the whole file.

        Args:
            path: the text file. A separator token written out in it also ends a document.
            tokenizer: the model's tokenizer.
            context: tokens per sequence.
            seed: of the split and of the shuffling.
            held_out_fraction: fraction of the documents kept for the two held-out sets together.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a folder, no text, no UTF-8, too few documents, or a part that fills no
                sequence.
            OSError: the file cannot be read.
        """
        check_context(context)
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is {held_out_fraction}; it must be in (0, 1)")
        self.context = context
        self._seed = seed
        self._held_out_fraction = held_out_fraction
        self._tokenizer = tokenizer
        separator = separator_of(tokenizer)
        content = _read_text_file(Path(path))
        self._digest = hashlib.sha256(content).hexdigest()
        texts = _split_documents(content, str(path), tokenizer.convert_ids_to_tokens(separator))
        parts = _split_parts(texts, seed, held_out_fraction, str(path))
        self._parts = {
            part: self._pack(part, token_ids_of(tokenizer, separator, parts[part]), str(path))
            for part in _PARTS
        }

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "batch pos"]:
        """Returns the training batch of this step.

        Raises:
            ValueError: the file does not fill one batch.
        """
        rows = self._parts["train"]
        if len(rows) < batch_size:
            raise ValueError(
                f"the text fills {len(rows)} training sequences of {self.context} tokens, but a "
                f"batch needs {batch_size}; give more text, or a smaller batch or context"
            )
        wanted = range(step * batch_size, (step + 1) * batch_size)
        epochs = {index // len(rows) for index in wanted}
        orders = {epoch: self._order(epoch, len(rows)) for epoch in epochs}
        return rows[[int(orders[i // len(rows)][i % len(rows)]) for i in wanted]]

    def held_out(self, part: HeldOut | str, n_sequences: int) -> Int[Tensor, "batch pos"]:
        """Returns the first `n_sequences` of a held-out set, or all it has if that is less."""
        check_part(part)
        return self._parts[part][:n_sequences]

    def describe(self) -> dict[str, Any]:
        """Returns kind, context, seed, split and digests of the text and the tokenizer."""
        return {
            "kind": "text file",
            "context": self.context,
            "seed": self._seed,
            "held_out_fraction": self._held_out_fraction,
            "text": self._digest,
            "tokenizer": tokenizer_digest(self._tokenizer),
        }

    def _pack(self, part: str, ids: list[int], path: str) -> Tensor:
        n_rows = len(ids) // self.context
        if n_rows == 0:
            raise ValueError(
                f"{path}: the {part} documents have {len(ids)} tokens, fewer than one sequence of "
                f"{self.context}; give more text or a smaller context"
            )
        return torch.tensor(ids[: n_rows * self.context]).view(n_rows, self.context)

    def _order(self, epoch: int, n_rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(number_of(f"{self._seed}/epoch/{epoch}"))
        return torch.randperm(n_rows, generator=generator)


def _read_text_file(path: Path) -> bytes:
    """The bytes of a file, or of a pipe such as a shell's `<(zcat text.gz)`."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one UTF-8 text file")
    if not path.exists():
        raise FileNotFoundError(f"there is no text file {path}")
    return path.read_bytes()


def _split_documents(content: bytes, path: str, separator: str) -> list[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    pieces = (
        piece.strip() for part in text.split(separator) for piece in re.split(r"\n\s*\n", part)
    )
    found = [piece for piece in pieces if piece]
    if not found:
        raise ValueError(f"{path} holds no text; it must hold documents set apart by blank lines")
    return found


def _split_parts(
    texts: list[str], seed: int, held_out_fraction: float, path: str
) -> dict[str, list[str]]:
    ranked = sorted(set(texts), key=lambda text: number_of(f"{seed}/{text}"))
    if len(ranked) < 3:
        raise ValueError(
            f"{path} has {len(ranked)} different documents; training, control and selection "
            "need at least one each: set documents apart by blank lines"
        )
    n_held_out = min(max(2, round(held_out_fraction * len(ranked))), len(ranked) - 1)
    control, selection = set(ranked[:n_held_out:2]), set(ranked[1:n_held_out:2])
    return {
        "train": [text for text in texts if text not in control and text not in selection],
        "control": sorted(control),
        "selection": sorted(selection),
    }


def token_ids_of(tokenizer: Any, separator: int, texts: list[str]) -> list[int]:
    """Returns the ids of the documents end to end, each after a separator."""
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [token for row in rows for token in (separator, *row)]


def separator_of(tokenizer: Any) -> int:
    """Returns the token that documents are set apart with; a tokenizer without one is refused."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has no bos and no eos token to set documents apart with")


def tokenizer_digest(tokenizer: Any) -> str:
    """Returns a short digest of a tokenizer's vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]


def check_context(context: int) -> None:
    """Refuses a context in which nothing can be predicted."""
    if context < 2:
        raise ValueError(f"context is {context}; it must be at least 2 to predict a next token")


def check_part(part: str) -> None:
    """Refuses what is not the name of a held-out set."""
    if part not in _PARTS[1:]:
        raise ValueError(f"held-out set {part!r} is not 'control' or 'selection'")
