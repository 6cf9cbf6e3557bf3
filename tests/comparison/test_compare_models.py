import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from circuits.comparison.compare_models import compare
from circuits.comparison.examples import _shown_rows
from circuits.gate.card import GateCard
from circuits.intervene.experiment import CannotDoTask, prepare_experiment
from circuits.metrics import accuracy
from circuits.models.backend import Model
from circuits.models.load import load_model, tokenizer_of
from circuits.report import headlines, report_html, warnings_of, write_results
from circuits.results.comparison_file import load_comparison, save_comparison
from circuits.results.discovery import DiscoverConfig
from circuits.tasks import Task, get_task
from tests.fake_comparison import make_comparison
from tests.helpers import folder_of

pytestmark = pytest.mark.slow


Pair = tuple[Model, Model]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_model("dense"), load_model("sparse")


@pytest.fixture(scope="module")
def comparison(pair: Pair):
    """The embedded pair on both tasks: from the folder that `circuits compare` has written, or new.

    .ci/run has just run that command, with ten times as many prompts.
    """
    if results := os.environ.get("CIRCUITS_RESULTS"):
        return load_comparison(Path(results) / "comparison.json")
    config = DiscoverConfig(n_prompts=10, granularities=("head", "edge"), redraws=2)
    return compare(*pair, [get_task("ioi"), get_task("greater_than")], config)


def test_both_models_do_both_tasks(pair: Pair, comparison):
    table = comparison.models_table().set_index(["task", "model"])
    assert (table["accuracy"] >= 0.95).all()
    task = get_task("greater_than")
    for model in pair:
        *_, prompts = task.draw(tokenizer_of(model), 20, 20, 20)
        assert prepare_experiment(model, prompts, metric=task.metric).full.mean() >= 0.8


@pytest.mark.parametrize("name", ["ioi_swap", "induction", "pronoun", "subject_verb"])
def test_both_models_do_the_other_tasks(pair: Pair, name):
    for model in pair:
        task = get_task(name)
        (prompts,) = task.draw(tokenizer_of(model), 100)
        experiment = prepare_experiment(model, prompts, metric=task.metric)
        assert accuracy(experiment.clean_logits, prompts).float().mean() >= 0.95


@pytest.mark.parametrize("name", ["code-dense", "code-sparse"])
def test_the_models_of_code_close_brackets(name):
    model, task = load_model(name), get_task("brackets")
    (prompts,) = task.draw(tokenizer_of(model), 100)
    logits = prepare_experiment(model, prompts, metric=task.metric).clean_logits
    right, wrong = (logits.gather(1, one) for one in (prompts.answers, prompts.wrong_answers))
    assert (right > wrong).float().mean() >= 0.95  # a comma may come before either


def test_the_sparse_model_of_code_keeps_its_bound():
    card: Any = GateCard.load(folder_of("code-sparse"))
    assert card.satisfied
    assert card.ce <= card.tau == card.dense_ce
    assert card.density["overall"] <= 0.02
    assert card.density["context"] == 256


def test_the_sparse_model_is_sparse_and_no_worse(comparison):
    dense, sparse = comparison.models["dense"], comparison.models["sparse"]
    assert dense.density == 1.0
    assert sparse.density <= 0.01
    assert max(sparse.density_per_layer) <= 0.03
    assert sparse.ce <= dense.ce + 0.01


def test_every_circuit_is_faithful_where_it_was_sized(comparison):
    for found in comparison.discoveries.values():
        for discovery in found.values():
            for one in discovery.circuits.values():
                assert one.faithfulness_sizing >= 0.9
                assert one.measured_on == "reporting"


def test_the_dense_circuits_pose_the_question(comparison):
    for found in comparison.discoveries.values():
        dense = found["dense"].circuits
        assert dense["head"].size >= 6
        assert dense["edge"].size >= 40


def test_a_model_compared_with_itself_by_name_has_ratio_1(small_pair):
    given = str(small_pair.sparse)
    itself = compare(given, given, "pronoun", n_prompts=10, granularities="mlp", redraws=2)
    assert {side: facts.name for side, facts in itself.models.items()} == dict.fromkeys(
        ("dense", "sparse"), given
    )
    assert repr(itself) == "Comparison(models: dense, sparse; tasks: pronoun)"
    row = itself.summary_table().iloc[0]
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == 1
    assert "no clear difference" in headlines(itself)[0]


@pytest.fixture(scope="module")
def small(small_pair):
    """Two models for what holds of any pair."""
    return load_model(small_pair.dense), load_model(small_pair.sparse)


@pytest.fixture(scope="module")
def with_others(small: Pair):
    untrained = copied(small[0])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in untrained.parameters():
            parameter.normal_(std=0.02)
    config = DiscoverConfig(n_prompts=10, granularities=("head", "edge"), redraws=2)
    others = {"again": small[1], "untrained": untrained}
    return compare(*small, [get_task("pronoun")], config, others=others)


def test_other_models_stand_beside_the_pair(with_others):
    table = with_others.others_table().set_index(["granularity", "model"])
    summary = with_others.summary_table().set_index("granularity")
    assert list(with_others.models) == ["dense", "sparse", "again", "untrained"]
    for granularity in ("head", "edge"):
        assert table.loc[(granularity, "sparse"), "ratio"] == summary.loc[granularity, "ratio"]
        assert table.loc[(granularity, "again"), "ratio"] == summary.loc[granularity, "ratio"]


def test_an_untrained_model_is_refused_and_says_why(with_others):
    table = with_others.others_table().set_index(["granularity", "model"])
    assert table.loc[("edge", "untrained"), "size"] != table.loc[("edge", "untrained"), "size"]
    assert "does not do the task" in table.loc[("edge", "untrained"), "note"]
    assert "untrained" not in with_others.discoveries["pronoun"]


def test_random_circuits_are_far_below_the_target(comparison):
    edges = comparison.evidence_table().set_index("granularity").loc["edge"]
    assert (edges["random_same_size"] < 0.3).all()


def test_the_roles_of_all_heads_are_measured(pair: Pair, comparison):
    roles = comparison.roles_table()
    roles = roles[roles["task"] == "ioi"]
    assert len(roles) == 2 * pair[0].cfg.n_layers * pair[0].cfg.n_heads
    circuits = comparison.discoveries["ioi"]
    for side in ("dense", "sparse"):
        inside = roles[(roles["model"] == side) & roles["in_circuit"]]["head"]
        assert list(inside) == circuits[side].circuits["head"].circuit.heads
    # The subject's second mention decides the answer: some head of each circuit reads it.
    readers = roles[(roles["role"] == "changed_token") & roles["in_circuit"]]
    assert set(readers["model"]) == {"dense", "sparse"}


def test_circuits_are_run_in_the_other_model(comparison):
    table = comparison.transfer_table()
    assert set(zip(table["found_in"], table["run_in"], strict=True)) == {
        ("dense", "sparse"),
        ("sparse", "dense"),
    }
    assert table["faithfulness"].between(-1, 1.5).all()
    assert (table["own"] >= 0.7).all()


def test_everything_is_saved_and_loaded(with_others, tmp_path):
    save_comparison(with_others, tmp_path / "comparison.json")
    again = load_comparison(tmp_path / "comparison.json")
    assert again.others_table().equals(with_others.others_table())
    assert again.transfer_table().equals(with_others.transfer_table())
    assert again.roles_table().equals(with_others.roles_table())


@pytest.mark.parametrize("name", ["dense", ""])
def test_another_model_needs_a_name_of_its_own(small: Pair, name):
    with pytest.raises(ValueError, match="another model cannot be called"):
        compare(*small, [get_task("ioi")], others={name: small[0]})


def test_the_first_prompt_shown_is_the_most_usual_one():
    templates = ("flattering", "usual", "flattering", "averse", "usual")
    sizes = {
        "dense": {"flattering": 79.0, "usual": 30.0, "averse": 10.0},
        "sparse": {"flattering": 15.0, "usual": 29.0, "averse": 60.0},
    }
    found = dict(make_comparison(tasks=("ioi",)).discoveries["ioi"])
    for side, own in sizes.items():
        mean = sum(own.values()) / 3
        edges = replace(found[side].circuits["attention_edge"], size=mean, template_sizes=own)
        found[side] = replace(found[side], circuits={"attention_edge": edges})
    assert _shown_rows(templates, found) == [1, 0, 3, 2]
    # Without attention edges there is nothing to choose by.
    without = make_comparison(tasks=("ioi",), granularities=("edge",)).discoveries["ioi"]
    assert _shown_rows(templates, without) == [0, 1, 3, 2]


def copied(model):
    return copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})


QUICK = DiscoverConfig(n_prompts=6, granularities=("mlp",))


def with_exchanged_words(model, one="gave", other="went"):
    """The same function of text with other tokens: two words have exchanged their numbers."""
    found, old = copied(model), model.tokenizer
    content = json.loads(old.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words[one], words[other] = words[other], words[one]
    found.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=old.bos_token, eos_token=old.eos_token, pad_token=old.pad_token,
        unk_token=old.unk_token,
    )  # fmt: skip
    ids = [words[one], words[other]]
    with torch.no_grad():
        found.embed.W_E[ids] = found.embed.W_E[ids[::-1]]
        found.unembed.W_U[:, ids] = found.unembed.W_U[:, ids[::-1]]
        found.unembed.b_U[ids] = found.unembed.b_U[ids[::-1]]
    return found


def test_each_model_reads_text_in_its_own_tokens(small: Pair):
    other = with_exchanged_words(small[1])
    found = compare(small[0], other, [get_task("pronoun")], QUICK, others={"own": small[1]})
    facts = found.models
    assert facts["sparse"].ce == pytest.approx(facts["own"].ce, abs=1e-5)
    assert found.of_other_tokenizer() == ["sparse"]
    said = warnings_of(replace(found, models=facts | {"sparse": replace(facts["sparse"], ce=9.0)}))
    assert any(
        "sparse. Cross-entropies are per token and cannot be compared" in one for one in said
    )
    assert not any("nats above" in one for one in said)
    # What would give one model's tokens to the other is left out, and said.
    assert found.roles == ()
    assert found.examples == {}
    assert any("roles of heads, and prompts with attention" in one for one in said)
    report_html(found, _figures(found))


def test_tokens_of_one_tokenizer_are_not_given_to_models_of_another(small: Pair):
    other = with_exchanged_words(small[1])
    tokens = torch.ones(2, 32, dtype=torch.long)
    with pytest.raises(ValueError, match="the tokenizers of dense and sparse differ"):
        compare(small[0], other, [get_task("pronoun")], QUICK, text=tokens)
    with pytest.raises(ValueError, match="text is given for dense; give it for dense, sparse"):
        compare(*small, [get_task("pronoun")], QUICK, text={"dense": tokens})


def test_nan_at_late_positions_is_an_error_that_names_the_model(small: Pair):
    broken = copied(small[1])
    with torch.no_grad():
        broken.pos_embed.W_pos[100:] = torch.nan
    with pytest.raises(ValueError, match="'my twin' has a cross-entropy of nan"):
        compare(small[0], broken, [get_task("pronoun")], QUICK, names=("dense", "my twin"))


def test_all_models_are_checked_before_any_search(small: Pair, monkeypatch):
    pronoun = get_task("pronoun")

    def backwards(tokenizer, n, seed):
        return [
            replace(pair, answers=pair.wrong_answers, wrong_answers=pair.answers)
            for pair in pronoun.pairs(tokenizer, n, seed)
        ]

    def search(*_arguments, **_options):
        raise AssertionError("a search began")

    monkeypatch.setattr("circuits.comparison.searches.discover", search)
    task = Task("backwards", "the giver for an answer", "logit_diff", backwards)
    with pytest.raises(CannotDoTask, match="nothing is left to compare; task backwards: dense"):
        compare(*small, [task], QUICK)


def test_tasks_and_models_that_would_share_files_are_refused(small: Pair):
    ioi = get_task("ioi")
    with pytest.raises(ValueError, match="the task 'ioi' is given twice"):
        compare(*small, [ioi, ioi])
    with pytest.raises(ValueError, match="results of two tasks would be called 'my_ioi'"):
        compare(*small, [replace(ioi, name="my ioi"), replace(ioi, name="my_ioi")])
    with pytest.raises(ValueError, match="models 'x/y' and 'x_y' would have the same files"):
        compare(*small, [ioi], others={"x/y": small[0], "x_y": small[0]})


def test_no_tasks_are_refused(small: Pair):
    with pytest.raises(ValueError, match="no tasks given"):
        compare(*small, [])


def test_the_report_is_whole_and_escapes_what_comes_from_data(comparison):
    comparison.run["command"] = "circuits <script>alert(1)</script>"
    page = report_html(comparison, _figures(comparison))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert len(page) < 8e6


def _figures(comparison):
    from circuits.report.page import figures_of

    return dict(figures_of(comparison))


def test_a_crash_while_writing_leaves_the_old_results(with_others, tmp_path, monkeypatch):
    out = tmp_path / "results"
    write_results(with_others, out)
    before = (out / "summary.csv").read_text()

    def full_disk(*_arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("circuits.report.write.save_comparison", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_results(with_others, out)
    assert (out / "summary.csv").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_warnings_name_a_worse_sparse_model(comparison):
    worse = replace(comparison.models["sparse"], ce=comparison.models["dense"].ce + 0.5)
    changed = replace(comparison, models=comparison.models | {"sparse": worse})
    assert any("0.5000 nats above" in one for one in warnings_of(changed))
