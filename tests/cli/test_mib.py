"""`circuits mib` on an embedded model, with rows of the benchmark's columns made from our IOI."""

import json

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from circuits.cli import main
from circuits.graph import Graph
from circuits.results.circuit import Circuit
from circuits.tasks import get_task
from tests.helpers import folder_of


def run(capsys, *arguments):
    code = main(["mib", *arguments])
    printed = capsys.readouterr()
    return code, " ".join(printed.out.split()), " ".join(printed.err.split())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("mib") / "rows.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(folder_of("dense"))
    content = [
        {
            "prompt": pair.clean,
            "metadata": {
                "indirect_object": pair.answers[0].strip(),
                "subject": pair.wrong_answers[0].strip(),
            },
            "s2_io_flip_counterfactual": {"prompt": pair.corrupted},
        }
        for pair in get_task("ioi_swap").pairs(tokenizer, 20, 0)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def circuit_file(path, graph, edges):
    Circuit.from_edges(graph, edges).save(path)
    return str(path)


def graph_of_dense():
    config = json.loads((folder_of("dense") / "config.json").read_text())
    return Graph(config["n_layer"], config["n_head"])


@pytest.mark.slow
@pytest.mark.parametrize("level", ["edge", "node"])
def test_tables_and_a_submission_are_written(capsys, tmp_path, rows, level):
    known = circuit_file(tmp_path / "known.json", graph_of_dense(), ["input->m0", "m0->logits"])
    out = tmp_path / "out"
    code, printed, error = run(
        capsys, "--model", "dense", "--data", str(rows), "--prompts", "10", "--level", level,
        "--known", known, "--out", str(out),
    )  # fmt: skip
    assert code == 0, error
    summary, sizes = (pd.read_csv(out / f"{name}.csv") for name in ("summary", "sizes"))
    assert list(summary["selection"]) == ["signed", "absolute"]
    assert list(summary["prompts"]) == [10, 10]
    assert set(summary["counterfactual"]) == {"s2_io_flip_counterfactual"}
    for (_, curve), row in zip(
        sizes.groupby("selection", sort=False), summary.to_dict("records"), strict=True
    ):
        assert list(curve["share"]) == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
        assert curve["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-4)
        assert np.trapezoid(curve["faithfulness"], curve["share"]) == pytest.approx(row["cpr"])
        assert row["cpr_low"] <= row["cpr"] <= row["cpr_high"]
    assert summary["auroc"].between(0, 1).all()
    assert summary["auroc_of_sizes"].isna().all() == (level == "node")
    assert f"AUROC against {known}: {summary['auroc'][0]:.3f}" in printed
    assert "CPR [95 %]" in printed
    assert "on 10 prompts" in printed
    handed_in = json.loads((out / "submission" / "ioi_dense" / "importances.json").read_text())
    scores = [edge["score"] for edge in handed_in["edges"].values()]
    assert any(scores)
    assert ("score" in handed_in["nodes"]["m0"]) == (level == "node")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "greater_than"], "unknown MIB task 'greater_than'; choose one of ioi, mcqa"),
        (["--level", "neuron"], "unknown level 'neuron'; choose one of edge, node"),
        (["--level", "node", "--selection", "greedy"], "nodes have no greedy order"),
        (["--method", "magic"], "unknown method 'magic'"),
        (["--method-option", "steps=3"], "attribution_patching has no option 'steps'"),
        (["--prompts", "1"], "at least 2 prompts are needed"),
        (["--known", "gone.json"], "gone.json"),
        (["--out", "file"], "file is a file; give a folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    code, _, error = run(capsys, "--model", "no/such", *arguments)
    assert code == 2
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_rows_and_known_circuits_are_checked_before_any_work(capsys, tmp_path, rows):
    other = circuit_file(tmp_path / "other.json", Graph(1, 1), ["m0->logits"])
    nothing = circuit_file(tmp_path / "nothing.json", graph_of_dense(), [])
    for arguments, message in (
        (["--known", other], "give a circuit of this architecture"),
        (["--known", nothing], "0 of 3628 edges are in the known circuit"),
        (["--counterfactual", "abc"], "rows.jsonl: row 1 has no abc_counterfactual; it has s2_io"),
        (["--task", "mcqa"], "rows.jsonl: row 1 has no symbol_counterfactual"),
    ):
        out = tmp_path / "out"
        code, _, error = run(
            capsys, "--model", "dense", "--data", str(rows), *arguments, "--out", str(out)
        )
        assert code == 2
        assert message in error
        assert not out.exists()
