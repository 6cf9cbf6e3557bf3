"""Packed sequences: what is in them, what decides them, what is held out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from circuits.sparsify import data
from circuits.sparsify.data import CorpusStream, TextStream
from tests.helpers import word_tokenizer

WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return word_tokenizer(WORDS)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Forty documents of five words, each word in one document only."""
    documents = [" ".join(WORDS[5 * i : 5 * i + 5]) for i in range(40)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> CorpusStream:
    """A corpus whose documents spell their seed and their number."""

    def documents(seed: int, _behaviours: tuple = ()):
        return (f"w{seed % 199} w{number % 199}" for number in itertools.count())

    monkeypatch.setattr(data, "documents", documents)
    return CorpusStream(tokenizer, context=7, seed=3)


def test_documents_are_packed_end_to_end_after_separators(
    text_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = TextStream(text_file, tokenizer, context=6)
    rows = torch.cat([stream.batch(step, 1) for step in range(36)])
    assert rows.shape == (36, 6)
    # A row is a separator and the five words of a document.
    assert rows[:, 0].tolist() == [tokenizer.bos_token_id] * 36
    starts = rows[:, 1]
    assert torch.equal(rows[:, 1:], starts[:, None] + torch.arange(5))


def test_parts_are_disjoint_and_together_the_whole_text(
    text_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = TextStream(text_file, tokenizer, context=6)
    parts = [
        {tuple(row) for row in rows.tolist()}
        for rows in (
            torch.cat([stream.batch(step, 1) for step in range(36)]),
            stream.held_out("control", 100),
            stream.held_out("selection", 100),
        )
    ]
    assert [len(part) for part in parts] == [36, 2, 2]
    assert len(set.union(*parts)) == 40


def test_every_epoch_holds_each_row_once_in_another_order(
    text_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = TextStream(text_file, tokenizer, context=6)
    rows = torch.cat([stream.batch(step, 8) for step in range(9)])  # two epochs of 36 rows
    first, second = rows[:36], rows[36:]
    assert {tuple(row) for row in first.tolist()} == {tuple(row) for row in second.tolist()}
    assert not torch.equal(first, second)


def test_equal_documents_fall_on_one_side(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(["w1 w2", "w3 w4", "w5 w6", "w7 w8"] * 10), encoding="utf-8")
    stream = TextStream(path, tokenizer, context=3, held_out_fraction=0.5)
    parts = [stream.batch(0, 20), *(stream.held_out(p, 99) for p in ("control", "selection"))]
    words = [set(part[:, 1:].flatten().tolist()) for part in parts]
    assert not words[0] & words[1]
    assert not words[0] & words[2]
    assert not words[1] & words[2]


def test_a_batch_depends_on_seed_and_step_only(
    text_file: Path, tokenizer: PreTrainedTokenizerBase, corpus: CorpusStream
) -> None:
    def text(seed: int) -> TextStream:
        return TextStream(text_file, tokenizer, context=6, seed=seed)

    later = text(0)
    for step in range(5):
        later.batch(step, 4)
    assert torch.equal(later.batch(5, 4), text(0).batch(5, 4))
    assert not torch.equal(text(1).batch(5, 4), text(0).batch(5, 4))
    again = CorpusStream(corpus._tokenizer, context=7, seed=3)
    assert torch.equal(corpus.batch(5, 4), again.batch(5, 4))
    assert not torch.equal(corpus.batch(5, 4), corpus.batch(6, 4))
    assert not torch.equal(
        corpus.batch(5, 4), CorpusStream(corpus._tokenizer, context=7, seed=4).batch(5, 4)
    )


def test_the_corpus_is_packed_and_its_parts_have_seeds_of_their_own(
    monkeypatch: pytest.MonkeyPatch, corpus: CorpusStream
) -> None:
    seeds: list[int] = []
    plain = data.documents

    def spy(seed: int, behaviours: tuple = ()):
        seeds.append(seed)
        return plain(seed, behaviours)

    monkeypatch.setattr(data, "documents", spy)
    rows = corpus.batch(0, 2)
    corpus.held_out("control", 2)
    corpus.held_out("selection", 2)
    assert [seed // 2**60 for seed in seeds] == [0, 1, 2]
    assert rows.shape == (2, 7)
    flat = rows.flatten()
    assert (flat[0::3] == 0).all()  # a separator before each document of two words
    assert (flat[1::3] == flat[1]).all()
    assert flat[2::3].tolist() == [2, 3, 4, 5]


def test_the_real_corpus_fills_batches() -> None:
    tokenizer = word_tokenizer(data_words())
    rows = CorpusStream(tokenizer, context=32).batch(0, 4)
    assert rows.shape == (4, 32)
    assert len(rows.unique()) > 10


def data_words() -> list[str]:
    return sorted(
        {word for text in itertools.islice(data.documents(1), 50) for word in text.split()}
    )


def test_a_description_tells_data_apart(
    text_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    def stream(**changes: int) -> dict[str, object]:
        return TextStream(text_file, tokenizer, **{"context": 6, "seed": 0, **changes}).describe()

    assert stream() == stream()
    assert stream(seed=1) != stream()
    assert stream(context=5) != stream()
    before = stream()
    text_file.write_text(text_file.read_text(encoding="utf-8") + "\n\nw0 w9\n", encoding="utf-8")
    assert stream() != before


def test_a_separator_written_out_ends_a_document(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(f"w{2 * i} w{2 * i + 1}" for i in range(9)))
    rows = TextStream(path, tokenizer, context=3).batch(0, 7)
    assert (rows[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b" \n \n", {}, "holds no text"),
        (b"w1 \xff", {}, "is not UTF-8"),
        (b"w1 w2\n\nw3 w4", {}, "2 different documents"),
        (b"w1\n\nw2\n\nw3 w4", {"context": 9}, "fewer than one sequence of 9"),
        (b"w1\n\nw2\n\nw3 w4", {"context": 1}, "context is 1; it must be at least 2"),
        (b"w1\n\nw2\n\nw3", {"held_out_fraction": 1.0}, r"held_out_fraction is 1.0.*\(0, 1\)"),
    ],
    ids=["empty", "encoding", "documents", "short", "context", "fraction"],
)
def test_a_bad_text_is_refused(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    content: bytes,
    options: dict[str, float],
    message: str,
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TextStream(path, tokenizer, **{"context": 2, **options})


def test_a_text_too_short_for_a_batch_is_refused(
    text_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="fills 36 training sequences of 6 tokens, but a batch ne"):
        TextStream(text_file, tokenizer, context=6).batch(0, 37)


def test_an_unknown_held_out_set_is_refused(corpus: CorpusStream) -> None:
    with pytest.raises(ValueError, match="'train' is not 'control' or 'selection'"):
        corpus.held_out("train", 1)


def test_a_tokenizer_without_separator_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no bos and no eos"):
        CorpusStream(tokenizer, context=8)
