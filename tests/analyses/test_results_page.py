"""The page of results is what its script makes of the saved tables, and nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results_page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("results_page")


def test_the_page_in_the_docs_is_made_of_the_tables_beside_it(results_page):
    made = results_page.page_text(ROOT / "docs" / "results")
    assert (ROOT / "docs" / "results.md").read_text() == made


def ratios(*rows):
    return pd.DataFrame(rows, columns=["task", "ratio", "ratio_low", "ratio_high"])


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (ratios(("a", 2.0, 1.5, 3.0), ("b", 1.5, 1.2, 2.0)), "reproduced"),
        (ratios(("a", 2.0, 1.5, 3.0), ("b", 1.1, 1.05, 1.2)), "partly: clearly fewer in a, b"),
        (ratios(("a", 2.0, 1.5, 3.0), ("b", 0.5, 0.4, 0.6)), "partly: clearly fewer in a"),
        (ratios(("a", 2.0, 0.9, 3.0), ("b", 1.0, 1.0, 1.0)), "not reproduced"),
    ],
    ids=["all", "too small", "one", "none clear"],
)
def test_a_ratio_is_judged_by_its_interval(results_page, rows, verdict):
    assert results_page.ratio_verdict(rows, 1.4) == verdict


@pytest.mark.parametrize(
    ("ce", "density", "verdict"),
    [
        (1.005, 0.003, "reproduced"),
        (1.005, 0.01, "partly"),
        (1.005, 0.05, "not reproduced"),
        (1.02, 0.003, "not reproduced"),
    ],
)
def test_a_density_counts_only_at_equal_cross_entropy(results_page, ce, density, verdict):
    dense = {"ce": 1.0, "density": 1.0, "context": 128}
    sparse = {"ce": ce, "density": density, "context": 128}
    claim = results_page.density_claim("here", dense, sparse)
    assert claim["verdict"] == verdict
    assert f"CE {ce - 1:+.4f}" in claim["measured here"]


def test_orders_and_gates_are_listed_at_the_base_of_all_other_choices(results_page):
    base = {
        "task": "ioi", "granularity": "edge", "method": "ig", "selection": "absolute",
        "gates": "follow", "ablation": "corrupted", "metric": "logit_diff", "target": 0.9,
        "prompts": 50, "dense": 139.0, "sparse": 264.0, "ratio": 0.53, "ratio_low": 0.39,
        "ratio_high": 0.69,
    }  # fmt: skip
    changes = [
        {}, {"target": 0.8}, {"method": "ap"}, {"selection": "signed"}, {"gates": "clean"},
        {"metric": "kl_div"}, {"prompts": 25},
        {"task": "greater_than", "metric": "prob_diff"},
        {"task": "greater_than", "metric": "kl_div"},
    ]  # fmt: skip
    listed = results_page.orders(pd.DataFrame([base | change for change in changes]))
    columns = ["behaviour", "order", "gates"]
    assert list(listed[columns].itertuples(index=False, name=None)) == [
        ("greater_than", "absolute", "follow"),
        ("ioi", "absolute", "follow"),
        ("ioi", "signed", "follow"),
        ("ioi", "absolute", "clean"),
    ]
    assert set(listed["ratio [95 %]"]) == {"0.53 [0.39, 0.69]"}


def test_pruned_sizes_stand_beside_those_before_and_the_count_by_attribution(results_page):
    row = {
        "task": "ioi", "granularity": "edge", "dense": 22.0, "sparse": 23.0, "ratio": 22 / 23,
        "ratio_low": float("nan"), "ratio_high": float("nan"),
        "prefix_dense": 139.0, "prefix_sparse": 267.0, "prefix_ratio": 139 / 267,
        "prefix_ratio_low": 0.33, "prefix_ratio_high": 0.75, "attribution_dense": 84.0,
        "attribution_sparse": 78.0, "attribution_ratio": 84 / 78, "faithfulness_dense": 0.8814,
        "faithfulness_sparse": 0.9208,
    }  # fmt: skip
    (told,) = results_page.pruned(pd.DataFrame([row])).to_dict("records")
    assert list(told.values()) == [
        "ioi", "edges", "22", "23", "0.96", "139, 267", "0.52 [0.33, 0.75]", "84, 78", "1.08",
        "0.881, 0.921",
    ]  # fmt: skip
    row |= {"ratio_low": 0.7, "ratio_high": 1.31}
    (told,) = results_page.pruned(pd.DataFrame([row])).to_dict("records")
    assert told["ratio [95 %]"] == "0.96 [0.70, 1.31]"
