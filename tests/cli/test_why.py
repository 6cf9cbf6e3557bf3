"""`circuits why`."""

import pandas as pd
import pytest

from circuits import split_score
from circuits.cli import main
from circuits.gate.gate import add_gate
from circuits.models.load import copy_model
from tests.helpers import make_tiny_model, word_tokenizer

PROMPT = "the cat sat cat"


@pytest.fixture
def models(monkeypatch):
    dense = make_tiny_model(tokenizer=word_tokenizer(["the", "cat", "sat"]))
    found = {"dense": dense, "sparse": add_gate(copy_model(dense), bias=2.0)}
    monkeypatch.setattr("circuits.models.load.load_model", lambda name, **_: found[name])
    return found


def run(capsys, *arguments):
    code = main(["why", *arguments])
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


def test_the_score_of_each_model_is_accounted_for_and_written(models, tmp_path, capsys):
    out = tmp_path / "new" / "why"
    code, said = run(capsys, PROMPT, "--head", "a1.h0", "--pairs", "3", "--out", str(out))
    assert code == 0, said
    sparse = split_score(models["sparse"], PROMPT, 1, 0)
    dense = split_score(models["dense"], PROMPT, 1, 0, -1, sparse.key)
    assert f"sparse: {sparse}, score {sparse.score:.3f}" in said
    assert f"dense: {dense}, score {dense.score:.3f}" in said
    assert f"The gate is open: the score is {sparse.score + 2:.3f} over its threshold" in said
    assert "no gate, so there is no threshold" in said
    assert f"attention goes from {dense.pattern:.3f} to" in said
    query_source, key_source = sparse.strongest(1)[0]
    assert f"{query_source} {key_source}" in said
    table = pd.read_csv(out / "pairs_2_dense.csv")
    assert len(table) == len(dense.sources) ** 2
    assert table.score.sum() == pytest.approx(dense.score, abs=1e-4)
    assert "plotly" in (out / "why.html").read_text()


def test_a_shut_gate_is_said_to_be_shut(models, capsys):
    models["sparse"].blocks[1].attn.hook_gate.bias = -100.0
    code, said = run(capsys, PROMPT, "--head", "a1.h0", "--model", "sparse")
    assert code == 0, said
    assert "The gate is shut: the score is" in said
    assert "goes from 0.000 to 0.000" in said
    assert "at random" not in said


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--head", "m3"), "'m3' is no head; a head is written like 'a3.h7'"),
        (("--head", "a1.h0<q>"), "is no head"),
        (("--head", "a7.h0"), "no head a7.h0: it has layers 0 to 1"),
        (("--head", "a1.h0", "--query", "9"), "no position 9 for the query"),
    ],
)
def test_bad_arguments_are_refused(capsys, arguments, why):
    code, said = run(capsys, PROMPT, *arguments)
    assert code == 2
    assert why in said.replace("│ ", "").replace(" │", "")
