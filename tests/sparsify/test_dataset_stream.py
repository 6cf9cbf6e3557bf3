"""Sequences from datasets: the same for the same seed, wherever reading starts."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from circuits.sparsify.dataset_stream import DatasetStream
from tests.helpers import word_tokenizer

WORDS = [f"w{i}" for i in range(600)]
DOCUMENTS = [" ".join(WORDS[3 * i : 3 * i + 3]) for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return word_tokenizer(WORDS)


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in DOCUMENTS))
    return str(path)


@pytest.fixture
def long_documents(tmp_path: Path) -> str:
    """Ten documents, each of seven rows of eight tokens and a little more."""
    path = tmp_path / "long.jsonl"
    texts = (" ".join(WORDS[60 * i : 60 * i + 60]) for i in range(10))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def open_stream(name: str, tokenizer: PreTrainedTokenizerBase, **options) -> DatasetStream:
    return DatasetStream(name, tokenizer, **{"context": 8, "held_out_fraction": 0.2} | options)


def words_in(tokens: torch.Tensor) -> set[int]:
    return set(tokens.flatten().tolist()) - {0}


def test_any_step_can_be_asked_for_at_any_time(jsonl, tokenizer):
    stream = open_stream(jsonl, tokenizer)
    in_order = [stream.batch(step, 4) for step in range(12)]
    again = open_stream(jsonl, tokenizer)
    for step in (7, 2, 3, 11, 0):
        assert torch.equal(again.batch(step, 4), in_order[step])


def test_a_step_that_is_asked_for_again_is_not_read_again(jsonl, tokenizer, monkeypatch):
    stream = open_stream(jsonl, tokenizer)
    first = stream.batch(3, 4)
    monkeypatch.setattr(stream, "_training_rows", None)
    assert torch.equal(stream.batch(3, 4), first)
    first.zero_()
    assert stream.batch(3, 4).any()


def test_no_token_is_lost_between_rows_or_documents(jsonl, tokenizer):
    rows = open_stream(jsonl, tokenizer, context=6).batch(0, 20).tolist()
    for row in rows:
        after = [(row[i], row[i + 1]) for i in range(5)]
        assert all(second == first + 1 for first, second in after if first and second)
        starts = [i for i, token in enumerate(row) if token == 0]
        assert all(later - earlier == 4 for earlier, later in zip(starts, starts[1:], strict=False))
        assert starts


def test_every_row_comes_once_before_any_comes_again(jsonl, tokenizer):
    stream = open_stream(jsonl, tokenizer)
    held_out = [words_in(stream.held_out(part, 99)) for part in ("control", "selection")]
    n_rows = (len(WORDS) - len(set.union(*held_out))) // 6
    for epoch in (0, 1):
        words = stream.batch(epoch, n_rows).flatten().tolist()
        assert sorted(set(words) - {0}) == sorted(word for word in words if word != 0)


def test_a_batch_is_not_one_long_document(long_documents, tokenizer):
    stream = open_stream(long_documents, tokenizer)
    of_documents = stream.batch(0, 8)[:, 1] // 60
    assert len(of_documents.unique()) > 4


def test_few_held_out_sequences_come_from_many_documents(long_documents, tokenizer):
    stream = open_stream(long_documents, tokenizer, held_out_fraction=0.9)
    documents = stream.held_out("control", 3)[:, 1] // 60
    assert len(documents.unique()) > 1
    everything = stream.held_out("control", 1000)
    assert torch.equal(everything, stream.held_out("control", len(everything)))


def test_rows_are_shuffled_within_a_window_and_not_read_ahead(
    long_documents, tokenizer, monkeypatch
):
    monkeypatch.setattr("circuits.sparsify.dataset_stream._ROW_WINDOW", 2 * 8)
    monkeypatch.setattr("circuits.sparsify.dataset_stream._WINDOW", 1)
    stream = open_stream(long_documents, tokenizer, held_out_fraction=0.01)
    lasts = stream.batch(0, 60).amax(dim=1).tolist()
    places = [sorted(lasts).index(last) for last in lasts]
    assert places != sorted(places)
    assert all(place <= turn + 1 for turn, place in enumerate(places))


def test_the_sets_share_no_document_and_miss_none(jsonl, tokenizer):
    stream = open_stream(jsonl, tokenizer)
    n_rows = 200 * 4 // 8
    train = words_in(stream.batch(0, n_rows - 20))
    control, selection = (
        words_in(stream.held_out(part, n_rows)) for part in ("control", "selection")
    )
    assert not train & control
    assert not train & selection
    assert not control & selection
    assert 0.1 * 600 < len(control | selection) < 0.3 * 600


def test_the_seed_decides_the_order_and_not_what_is_held_out(jsonl, tokenizer):
    one, other = (open_stream(jsonl, tokenizer, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.batch(0, 4), other.batch(0, 4))
    assert torch.equal(one.held_out("control", 3), other.held_out("control", 3))


def test_the_documents_come_around_in_another_order(jsonl, tokenizer):
    stream = open_stream(jsonl, tokenizer)
    tokens = stream.batch(0, 180)  # the training documents fill about 80 rows
    first, second = tokens[:60], tokens[90:150]
    assert len(words_in(first) & words_in(second)) > 200
    assert not torch.equal(first, second)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".txt"])
def test_other_files_give_the_same_sequences(tmp_path, jsonl, tokenizer, ending):
    path = tmp_path / f"documents{ending}"
    frame = pd.DataFrame({"text": DOCUMENTS})
    if ending == ".csv":
        frame.to_csv(path, index=False)
    elif ending == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("\n".join(DOCUMENTS))
    expected = open_stream(jsonl, tokenizer).held_out("selection", 4)
    assert torch.equal(open_stream(str(path), tokenizer).held_out("selection", 4), expected)


def test_equal_descriptions_mean_equal_tokens(tmp_path, jsonl, tokenizer):
    one = open_stream(jsonl, tokenizer)
    assert one.describe() == open_stream(jsonl, tokenizer).describe()
    json.dumps(one.describe())
    other = tmp_path / "other"
    other.mkdir()
    (other / "documents.jsonl").write_text(Path(jsonl).read_text() * 2)
    changed = open_stream(str(other / "documents.jsonl"), tokenizer)
    assert one.describe() != changed.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "body"}, "no column 'body' of text; its columns are text, id"),
        ({"column": "id"}, "no column 'id' of text"),
        ({"context": 1}, "context is 1"),
        ({"held_out_fraction": 0}, "must be in"),
    ],
)
def test_bad_options_are_refused(jsonl, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        open_stream(jsonl, tokenizer, **options)


def test_a_missing_file_is_refused(tokenizer):
    with pytest.raises(FileNotFoundError, match="there is no file nothing.jsonl"):
        open_stream("nothing.jsonl", tokenizer)


def test_an_unknown_ending_is_refused(tmp_path, tokenizer):
    (tmp_path / "text.pdf").write_text("text")
    with pytest.raises(ValueError, match=r"known endings are .jsonl"):
        open_stream(str(tmp_path / "text.pdf"), tokenizer)


def test_held_out_documents_that_fill_no_sequence_are_refused(jsonl, tokenizer):
    stream = open_stream(jsonl, tokenizer, held_out_fraction=0.02, context=64)
    with pytest.raises(ValueError, match="do not fill one sequence of 64 tokens"):
        stream.held_out("control", 1)


def test_training_documents_that_fill_no_sequence_are_refused(jsonl, tokenizer):
    stream = open_stream(jsonl, tokenizer, context=1000)
    with pytest.raises(ValueError, match="the train documents of .* do not fill one sequence"):
        stream.batch(0, 4)
