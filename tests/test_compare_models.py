import pytest

from circuits.ablate import prepare_experiment
from circuits.compare_models import compare
from circuits.discovery import DiscoverConfig
from circuits.metrics import accuracy
from circuits.models import load_model, tokenizer_of
from circuits.report import headlines, report_html, warnings_of, write_results
from circuits.tasks import get_task


@pytest.fixture(scope="module")
def pair():
    return load_model("dense"), load_model("sparse")


@pytest.fixture(scope="module")
def comparison(pair):
    config = DiscoverConfig(n_prompts=20)
    return compare(*pair, [get_task("ioi"), get_task("greater_than")], config)


def test_both_models_do_both_tasks(comparison):
    table = comparison.models_table().set_index(["task", "model"])
    assert (table["accuracy"] >= 0.95).all()
    assert (table.loc["greater_than", "metric"] >= 0.8).all()


@pytest.mark.parametrize("name", ["ioi_swap", "induction", "pronoun"])
def test_both_models_do_the_other_tasks(pair, name):
    for model in pair:
        task = get_task(name)
        prompts = task.build(tokenizer_of(model), n_ranking=1, n_heldout=100).heldout
        experiment = prepare_experiment(model, prompts, metric=task.metric)
        assert accuracy(experiment.clean_logits, prompts).float().mean() >= 0.95


def test_the_sparse_model_is_sparse_and_no_worse(comparison):
    dense, sparse = comparison.models["dense"], comparison.models["sparse"]
    assert dense.density == 1.0
    assert sparse.density <= 0.01
    assert max(sparse.density_per_layer) <= 0.03
    assert sparse.ce <= dense.ce + 0.01


def test_every_circuit_is_faithful_and_minimal_along_its_ranking(comparison):
    for found in comparison.discoveries.values():
        for discovery in found.values():
            for one in discovery.found.values():
                assert one.faithfulness >= 0.9
                assert one.faithfulness_without_last is None or one.faithfulness_without_last < 0.9


def test_the_dense_circuits_pose_the_question(comparison):
    for found in comparison.discoveries.values():
        dense = found["dense"].found
        assert dense["head"].size >= 6
        assert dense["edge"].size >= 40


def test_a_model_compared_with_itself_has_ratio_1(pair):
    config = DiscoverConfig(n_prompts=20, granularities=("edge",))
    itself = compare(pair[1], pair[1], [get_task("ioi")], config)
    row = itself.summary_table().iloc[0]
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == 1
    assert "no clear difference" in headlines(itself)[0]


def test_no_tasks_are_refused(pair):
    with pytest.raises(ValueError, match="no tasks given"):
        compare(*pair, [])


def test_the_report_is_whole_and_escapes_what_comes_from_data(comparison):
    comparison.run["command"] = "circuits <script>alert(1)</script>"
    page = report_html(comparison, _figures(comparison))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert len(page) < 8e6


def _figures(comparison):
    from circuits.report import _figures

    return dict(_figures(comparison))


def test_a_crash_while_writing_leaves_the_old_results(comparison, tmp_path, monkeypatch):
    out = tmp_path / "results"
    write_results(comparison, out)
    before = (out / "summary.csv").read_text()

    def full_disk(*_arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("circuits.report.save_comparison", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_results(comparison, out)
    assert (out / "summary.csv").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_warnings_name_a_worse_sparse_model(comparison):
    from dataclasses import replace

    worse = replace(comparison.models["sparse"], ce=comparison.models["dense"].ce + 0.5)
    changed = replace(comparison, models=comparison.models | {"sparse": worse})
    assert any("0.5000 nats above" in one for one in warnings_of(changed))
