"""The tables of a real model: what is measured, and that the page says what the tables say."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from circuits.cli import main
from circuits.discovery.holding import heads_holding
from circuits.gate.gate import add_gate
from circuits.gate.top_k import add_top_k
from circuits.intervene import prepare_experiment
from circuits.models.load import copy_model, load_model, tokenizer_of
from circuits.tasks import get_task
from tests.helpers import make_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("real_model")


@pytest.fixture
def page(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("real_model_page")


def test_the_page_in_the_docs_is_made_of_the_tables_beside_it(page):
    text = (ROOT / "docs" / "real_model.md").read_text()
    assert page.filled(text, ROOT / "docs" / "real_model") == text
    assert text.count("<!-- table: ") == len(page.BLOCKS)


@pytest.mark.parametrize("name", ["sparse", "control"])
def test_the_recipe_is_one_that_train_takes(real, name, tmp_path, capsys):
    given = ["--data", "x.jsonl", "--device", "tpu", "--out", str(tmp_path / "run")]
    assert main(["train", *real.RECIPES[name].split(), *given]) == 2
    assert "device 'tpu' is not available" in capsys.readouterr().err


def test_means_and_errors_are_those_of_loops_over_sequences(real):
    dense = make_tiny_model()
    other = copy_model(dense)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    models = {"dense": dense, "sparse": add_gate(other), "top": add_top_k(copy_model(dense), 2)}
    tokens = torch.randint(0, dense.cfg.d_vocab, (5, 7))
    table = real.measured(models, tokens).set_index("model")
    for name, model in models.items():
        ces, differences, kls = [], [], []
        for row in tokens:
            with torch.no_grad():
                p, q = (m(row[None])[0].double().softmax(dim=-1) for m in (dense, model))
            own, base = (sum(-x[i, row[i + 1]].log().item() for i in range(6)) / 6 for x in (q, p))
            ces.append(own)
            differences.append(own - base)
            kls.append(sum((p[i] * (p[i] / q[i]).log()).sum().item() for i in range(7)) / 7)
        for what, values in (("ce", ces), ("difference", differences), ("kl", kls)):
            mean = sum(values) / 5
            error = (sum((value - mean) ** 2 for value in values) / 4 / 5) ** 0.5
            assert table.loc[name, what] == pytest.approx(mean, abs=2e-5)
            assert table.loc[name, f"{what}_error"] == pytest.approx(error, abs=2e-5)
    assert table.loc["dense", "density"] == 1
    assert 0 < table.loc["sparse", "density"] < 1
    assert table.loc["top", "density"] == pytest.approx((1 + 2 * 6) / 28)


def test_the_share_that_is_kept_has_the_error_of_a_ratio(real):
    table = pd.DataFrame(
        {
            "task": ["a", "b", "b", "a"],
            "model": ["dense", "dense", "sparse", "sparse"],
            "margin": [2.0, 4.0, 3.0, 2.0],
            "margin_error": [0.1, 0.2, 0.3, 0.0],
        }
    )
    shares = real.with_shares(table).set_index(["model", "task"])
    draws = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0)).double()
    ratio = (3 + 0.3 * draws[0]) / (4 + 0.2 * draws[1])
    assert shares.loc[("sparse", "b"), "kept"] == 0.75
    assert shares.loc[("sparse", "b"), "kept_error"] == pytest.approx(ratio.std().item(), rel=0.02)
    assert shares.loc[("sparse", "a"), "kept"] == 1
    assert shares.loc[("sparse", "a"), "kept_error"] == pytest.approx(0.05)


def test_only_cells_that_are_missing_are_measured(real, tmp_path, monkeypatch):
    for name in ("heldout_a", "speeches"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n')
    seen = []

    def cell(models, tokens):
        seen.append((sorted(models), list(tokens.shape)))
        return pd.DataFrame({"model": ["dense"], "ce": [1.0]})

    monkeypatch.setattr(real, "measured", cell)
    monkeypatch.setattr(
        real, "rows_of", lambda _texts, _, context, n: torch.zeros(n, context, dtype=torch.long)
    )
    path = tmp_path / "text.csv"
    models = {"dense": make_tiny_model()}
    real.measure_text(path, lambda: dict(models), tmp_path, 512)
    names = ["dense", "dense, top 32", "dense, top 8"]
    assert seen == 2 * [(names, [4, 128]), (names, [2, 256])]
    whole = pd.read_csv(path)
    whole[whole["text"] != "speeches"].to_csv(path, index=False)
    real.measure_text(path, lambda: dict(models), tmp_path, 512)
    assert len(seen) == 6
    pd.testing.assert_frame_equal(pd.read_csv(path), whole)
    real.measure_text(path, pytest.fail, tmp_path, 512)


def test_rows_come_from_all_over_the_documents(real):
    class Tokenizer:
        bos_token_id = eos_token_id = 0

        def __call__(self, texts, **_):
            return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    documents = [" ".join(str(10 * i + j) for j in range(1, 8)) for i in range(1, 6)]
    rows = real.rows_of(documents, Tokenizer(), 4, 3)
    assert rows[0].tolist() == [0, 11, 12, 13]
    assert rows[-1].tolist() == [54, 55, 56, 57]
    assert rows.shape == (3, 4)
    assert len(real.rows_of(documents, Tokenizer(), 4, 99)) == 10


def test_the_table_of_circuits_says_both_counts(page, tmp_path):
    row = {"task": "ioi", "granularity": "edge", "prompts": 40}
    row |= {"dense": 9000.0, "sparse": 4500.0, "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5}
    row |= {"attribution_dense": 800.0, "attribution_sparse": 100.0, "attribution_ratio": 8.0}
    row |= {"faithfulness_dense": 0.91, "faithfulness_sparse": 0.9}
    pd.DataFrame([row]).to_csv(tmp_path / "circuits.csv", index=False)
    said, *_, last = page.circuit_rows(tmp_path).splitlines()
    assert said == "Clearly fewer in the twin: edges of `ioi`. Clearly more: none."
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    wanted = ["`ioi`", "edges", "9,000", "4,500", "2.00 [1.50, 2.50]", "800, 100", "8.00"]
    assert cells == [*wanted, "0.91, 0.90", "40"]


def test_the_table_of_pruned_circuits_has_the_control_beside_the_pair(page, tmp_path):
    row = {"task": "ioi", "granularity": "head", "dense": 20.0, "sparse": 30.0, "minimal": True}
    row |= {"ratio": 0.67, "ratio_low": 0.5, "ratio_high": 0.9}
    row |= {"prefix_dense": 114.0, "prefix_sparse": 94.0, "prefix_ratio": 1.21}
    row |= {"prefix_ratio_low": 0.48, "prefix_ratio_high": 3.06}
    row |= {"faithfulness_dense": 0.91, "faithfulness_sparse": 0.88}
    edges = row | {"granularity": "attention_edge", "minimal": False, "ratio_high": 1.1}
    pd.DataFrame([row, edges]).to_csv(tmp_path / "pruned.csv", index=False)
    other = {"task": "ioi", "granularity": "head", "model": "control", "size": 25.0}
    other |= {"ratio": 0.8, "ratio_low": 0.7, "ratio_high": 1.0}
    none = other | {"granularity": "attention_edge", "size": None, "ratio": None}
    foreign = other | {"model": "sparse", "size": 99.0}
    table = pd.DataFrame([foreign, other, none])
    table.to_csv(tmp_path / "pruned_others.csv", index=False)
    said, *_, first, last = page.pruned_rows(tmp_path).splitlines()
    assert said == "Clearly fewer in the twin: none. Clearly more: heads of `ioi`."
    wanted = ["`ioi`", "heads", "20", "30", "25", "0.67 [0.50, 0.90]", "0.80 [0.70, 1.00]"]
    wanted += ["114, 94", "1.21 [0.48, 3.06]", "0.91, 0.88", "yes"]
    assert [cell.strip() for cell in first.strip("|").split("|")] == wanted
    assert "| - | 0.67 [0.50, 1.10] | does not do the task |" in last
    assert last.endswith("| not all tried |")


def test_only_rows_of_heads_that_are_missing_are_measured(real, tmp_path, monkeypatch):
    asked = []

    def rows(models, tasks, _n_prompts):
        for name, task in itertools.product(models, tasks):
            asked.append((name, task))
            yield pd.DataFrame({"task": [task], "model": [name], "mean": [1.5], "sem": [0.1]})
            if len(asked) == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(real, "heads_table", rows)
    models = dict.fromkeys(("dense", "sparse", "control"))
    path = tmp_path / "heads.csv"
    with pytest.raises(KeyboardInterrupt):
        real.measure_heads(path, lambda: models, 2)
    real.measure_heads(path, lambda: models, 2)
    assert asked == list(itertools.product(models, real.HEADS_OF))
    assert len(pd.read_csv(path)) == 15
    real.measure_heads(path, pytest.fail, 2)


def test_pruned_circuits_are_found_for_each_behaviour_once(real, tmp_path, monkeypatch):
    asked = []

    def command(arguments):
        folder = Path(arguments[arguments.index("--out") + 1])
        asked.append((arguments[arguments.index("--task") + 1], "--resume" in arguments))
        folder.mkdir(parents=True)
        for name in ("summary", "others"):
            pd.DataFrame({"task": [folder.name]}).to_csv(folder / f"{name}.csv", index=False)

    monkeypatch.setattr(real, "run_command", command)
    (tmp_path / "pruned" / "ioi.parts").mkdir(parents=True)
    sources = {"dense": "a", "sparse": "b", "control": "c"}
    for _ in range(2):
        real.compare_pruned(tmp_path, sources, ["greater_than", "ioi"], "cpu")
    assert asked == [("greater_than", False), ("ioi", True)]
    for name in ("pruned", "pruned_others"):
        assert pd.read_csv(tmp_path / f"{name}.csv")["task"].tolist() == ["greater_than", "ioi"]


def test_the_rows_of_heads_are_means_over_prompts(real):
    model = load_model("dense")
    (row,) = real.heads_table({"x": model}, ["pronoun"], 3)
    task = get_task("pronoun")
    (prompts,) = task.draw(tokenizer_of(model), 3)
    held = heads_holding(prepare_experiment(model, prompts, metric=task.metric))["heads"].tolist()
    mean = sum(held) / 3
    error = (sum((one - mean) ** 2 for one in held) / 2 / 3) ** 0.5
    assert row.drop(columns=["mean", "sem"]).values.tolist() == [["pronoun", "x", 3]]
    assert row[["mean", "sem"]].values[0] == pytest.approx([mean, error])
