"""What the analysis of real text measures on: sequences that nothing was chosen by, by file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuits.sparsify.dataset_stream import DatasetStream
from tests.helpers import word_tokenizer

_SPEC = importlib.util.spec_from_file_location(
    "real_text", Path(__file__).parents[2] / "analyses" / "real_text.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
real_text: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(real_text)

WORDS = [f"w{i}" for i in range(900)]


def test_what_is_reported_was_not_chosen_by_and_knows_its_file(tmp_path, monkeypatch):
    path = tmp_path / "files.jsonl"
    texts = [" ".join(WORDS[30 * i : 30 * i + 30]) for i in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    stream = DatasetStream(str(path), word_tokenizer(WORDS), context=8, held_out_fraction=0.9)
    monkeypatch.setattr(real_text, "SELECTION_SEQUENCES", 10)
    tokens, files = real_text.unseen(stream, 0)
    chosen_by = stream.held_out("selection", 10)
    everything = stream.held_out("selection", 1000)
    assert len(chosen_by) == 10
    assert sorted([*tokens.tolist(), *chosen_by.tolist()]) == sorted(everything.tolist())
    # Words of one file are of one thirty; a sequence that ends in a separator has none of its file.
    ends = [
        (file, (row[-1] - 2) // 30)
        for file, row in zip(files, tokens.tolist(), strict=True)
        if row[-1] != 0
    ]
    assert len(set(ends)) == len({file for file, _ in ends}) == len({words for _, words in ends})
    assert len(set(ends)) > 5


def test_intervals_are_of_the_difference_to_the_first_model_and_over_files(monkeypatch):
    def evaluate(model, row):
        value = float(row[0, 0])
        ce = {"first": value, "same": value, "above": value + 0.5, "one file": 2 * value}[model]
        return ce, SimpleNamespace(overall=0.25)

    monkeypatch.setattr(real_text, "evaluate", evaluate)
    tokens = torch.tensor([[0, 1], [0, 1], [8, 1], [8, 1]] * 3)
    files = [name for name in "abcdef" for _ in range(2)]
    names = ("first", "same", "above", "one file")
    table = real_text.comparison({n: n for n in names}, tokens, files)
    found = table.set_index("model")[["difference", "low", "high"]]
    assert found.loc["same"].tolist() == [0, 0, 0]
    assert found.loc["above"].tolist() == pytest.approx([0.5, 0.5, 0.5])
    # Three files have 0 and three have 8: in 3 % of the draws of five all are of one kind.
    assert found.loc["one file"].tolist() == [4, 0, 8]
    assert table["ce"].tolist() == [4, 4, 4.5, 8]
    assert (table["density"] == 0.25).all()
    assert (table[["sequences", "files", "context"]].iloc[0] == [12, 6, 256]).all()


@pytest.mark.parametrize("every", [2, 3])
def test_a_state_knows_how_single_batches_swung_before_it(tmp_path, every):
    lines = [{"step": step, "sampled_ce": float(step)} for step in range(1, 7)]
    told = dict.fromkeys(("ce", "tau", "density", "control_ce", "control_tau", "lambda"), 1.0)
    for line in lines[every - 1 :: every]:
        line |= told
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    states = real_text.states(tmp_path, every)
    assert states["step"].tolist() == list(range(every, 7, every))
    assert states["batch_ce_high"].tolist() == states["step"].tolist()
    assert states["batch_ce_low"].tolist() == (states["step"] - every + 1).tolist()
