"""Discovery from end to end, on a circuit written by hand and on random models."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from circuits.attribute import (
    METHODS,
    attribution_patching,
    integrated_gradients,
    register_method,
)
from circuits.choices import ATTRIBUTION_METHODS, GRANULARITIES
from circuits.discovery.find_circuits import discover
from circuits.discovery.hand_built import induction
from circuits.discovery.redraw import halves
from circuits.discovery.work import work_of_search, work_of_step
from circuits.gate.gate import add_gate
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import faithfulness, prepare_experiment
from circuits.metrics import METRICS, register_metric
from circuits.prompts import Prompts
from circuits.results.discovery import DiscoverConfig, Discovery
from circuits.tasks import Task, TaskPrompts
from tests.helpers import make_tiny_model, skip_file_without_hooked_transformer

skip_file_without_hooked_transformer()

TASK = Task("made_up", "prompts are given", "logit_diff", lambda _tokenizer, _n, _seed: [])
INDUCTION = induction()


def known_prompts():
    return INDUCTION.prompts(12)


def made_up_prompts(model, n=12, length=5, ablation="corrupted"):
    """Random prompts whose right answer is the token that the ablation hurts most."""

    def draw():
        clean = torch.randint(model.cfg.d_vocab, (n, length))
        corrupted = clean.clone()
        corrupted[:, 1:4] = torch.randint(model.cfg.d_vocab, (n, 3))
        with torch.no_grad():
            logits, ablated = model(clean)[:, -1], model(corrupted)[:, -1]
        # With zeros everywhere the logits are those of the biases, whatever the prompt.
        gone = {"corrupted": ablated, "mean": logits.mean(dim=0), "zero": 0}
        change = logits - gone[ablation]
        return Prompts(
            clean=clean,
            corrupted=corrupted,
            lengths=torch.full((n,), length),
            answers=change.argmax(dim=-1, keepdim=True),
            wrong_answers=change.argmin(dim=-1, keepdim=True),
            templates=("one", "two") * (n // 2),
        )

    return TaskPrompts(ranking=draw(), sizing=draw(), reporting=draw())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "ablation"), [(0.5, "corrupted"), (0.9, "corrupted"), (0.9, "mean"), (0.9, "zero")]
)
def test_every_circuit_of_a_random_model_is_faithful_on_the_prompts_that_sized_it(target, ablation):
    model = make_tiny_model()
    config = DiscoverConfig(target=target, ablation=ablation, redraws=0)
    prompts = made_up_prompts(model, ablation=ablation)
    found = discover(model, TASK, config, prompts=prompts).circuits
    assert tuple(found) == tuple(GRANULARITIES)
    for one in found.values():
        assert one.faithfulness_sizing >= target
        assert one.measured_on == "reporting"


@pytest.mark.parametrize("prune", [False, True])
def test_the_faithfulness_of_a_circuit_is_what_an_intervention_measures(prune):
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities=("edge",), prune=prune, redraws=0)
    found = discover(model, TASK, config, prompts=prompts).circuits["edge"]
    for part, said in (
        (prompts.sizing, found.faithfulness_sizing),
        (prompts.reporting, found.faithfulness),
    ):
        experiment = prepare_experiment(model, part, metric="logit_diff")
        values = run_edges(experiment, found.circuit.edges)
        measured = float(faithfulness(values, experiment.full, experiment.empty))
        assert measured == pytest.approx(said, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["edge", "attention_edge"])
def test_what_is_said_of_the_prefix_stays_when_it_is_pruned(granularity):
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities=(granularity,), redraws=3)
    plain = discover(model, TASK, config, prompts=prompts).circuits[granularity]
    pruned = discover(model, TASK, replace(config, prune=True), prompts=prompts).circuits[
        granularity
    ]
    for name in ("size", "low", "high"):
        of_size = name if name == "size" else f"size_{name}"
        assert getattr(pruned, f"prefix_{name}") == getattr(plain, f"prefix_{name}")
        assert getattr(plain, f"prefix_{name}") == getattr(plain, of_size)
    assert pruned.size < pruned.prefix_size
    assert (plain.is_minimal, pruned.is_minimal) == (None, True)
    # The interval of a prefix is not passed off as that of what is left, nor are its resamples.
    assert pruned.redrawn_prefixes == plain.redrawn_prefixes == plain.redrawn_sizes
    both = zip(pruned.redrawn_sizes, pruned.redrawn_prefixes, strict=True)
    assert all(left < before for left, before in both)
    assert pruned.resampled_templates == ()
    assert pruned.faithfulness_sizing >= config.target
    assert pruned.curve_faithfulness == plain.curve_faithfulness


def test_a_circuit_looked_for_with_clean_gates_is_measured_with_clean_gates():
    model = add_gate(make_tiny_model(), bias=0.1)
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities=("edge",), gates="clean", redraws=0)
    found = discover(model, TASK, config, prompts=prompts).circuits["edge"]
    measured = {}
    for gates in ("follow", "clean"):
        experiment = prepare_experiment(model, prompts.sizing, metric="logit_diff", gates=gates)
        values = run_edges(experiment, found.circuit.edges)
        measured[gates] = float(faithfulness(values, experiment.full, experiment.empty))
    assert found.faithfulness_sizing == pytest.approx(measured["clean"], abs=1e-4)
    assert found.faithfulness_sizing != pytest.approx(measured["follow"], abs=1e-3)
    assert found.circuit.provenance["gates"] == "clean"


@pytest.mark.slow
def test_what_the_reporting_prompts_say_does_not_change_the_circuit():
    model = make_tiny_model()
    one, other = made_up_prompts(model), made_up_prompts(model)
    other = TaskPrompts(one.ranking, one.sizing, other.reporting)
    first, second = (
        discover(model, TASK, prompts=prompts, redraws=2).circuits for prompts in (one, other)
    )
    for granularity in GRANULARITIES:
        pair = first[granularity], second[granularity]
        for name in ("size", "redrawn_sizes", "faithfulness_sizing"):
            assert getattr(pair[0], name) == getattr(pair[1], name)
        assert pair[0].curve_faithfulness != pair[1].curve_faithfulness


def test_the_interval_of_faithfulness_is_that_of_the_mean_over_reporting_prompts():
    model = make_tiny_model()
    prompts = made_up_prompts(model, n=40)
    config = DiscoverConfig(granularities=("edge",))
    found = discover(model, TASK, config, prompts=prompts).circuits["edge"]
    experiment = prepare_experiment(model, prompts.reporting, metric="logit_diff")
    gain = (run_edges(experiment, found.circuit.edges) - experiment.empty).double()
    gap = (experiment.full - experiment.empty).double()
    # The delta method's standard error of a ratio of means, the templates' means taken out.
    left = (gain - found.faithfulness * gap) / gap.mean()
    strata = [left[start::2] for start in (0, 1)]
    error = sum(one.var().item() / len(one) for one in strata) ** 0.5 / 2
    width = found.faithfulness_high - found.faithfulness_low
    assert found.faithfulness_interval == "prompts within templates"
    assert width == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert found.faithfulness_low < found.faithfulness < found.faithfulness_high


@pytest.mark.parametrize(
    ("n", "drawn"),
    [(12, "halves of ranking and sizing prompts"), (8, "none: 8 prompts are too few")],
)
def test_few_prompts_have_no_interval(n, drawn):
    model = make_tiny_model()
    config = DiscoverConfig(granularities=("head",))
    found = discover(model, TASK, config, prompts=made_up_prompts(model, n=n)).circuits["head"]
    assert found.interval == drawn
    assert found.faithfulness_interval == (drawn if n < 10 else "prompts within templates")
    assert math.isnan(found.size_low) == math.isnan(found.faithfulness_low) == (n < 10)
    assert len(found.redrawn_sizes) == (0 if n < 10 else 8)


@pytest.mark.slow
def test_a_size_found_again_on_halves_is_what_discover_finds_there():
    model = make_tiny_model()
    prompts = made_up_prompts(model, n=16)
    granularities = ("head", "edge", "attention_edge")
    config = DiscoverConfig(granularities=granularities, redraws=3, seed=5)
    found = discover(model, TASK, config, prompts=prompts).circuits
    members: dict[str, list[set[str]]] = {"head": [], "edge": []}
    for number, (ranking, sizing) in enumerate(
        halves(prompts.ranking, prompts.sizing, n=3, seed=5)
    ):
        assert len(ranking) == len(sizing) == 8
        part = TaskPrompts(ranking, sizing, prompts.reporting)
        alone = discover(model, TASK, config, prompts=part, redraws=0).circuits
        for granularity, one in found.items():
            assert one.redrawn_sizes[number] == alone[granularity].size
        members["head"].append(set(alone["head"].circuit.heads))
        members["edge"].append(set(alone["edge"].circuit.edge_names))
    for granularity, sets in members.items():
        one = found[granularity]
        assert one.stability is not None
        shared = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
        assert one.stability.jaccard == pytest.approx(sum(shared) / 3)
        assert one.stability.n_in(granularity, one.circuit, 1) == len(set.intersection(*sets))
        assert one.stability.n_in(granularity, one.circuit, 0.1) == len(set.union(*sets))
    assert found["attention_edge"].stability is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"redraws": 0}, "none: nothing was redrawn"),
        ({"ablation": "mean"}, "none: a half of a template's 3 prompts has no mean"),
    ],
)
def test_why_a_size_has_no_interval(changes, why):
    model = make_tiny_model()
    prompts = made_up_prompts(model, n=12, ablation=changes.get("ablation", "corrupted"))
    names = ("a",) * 9 + ("b",) * 3
    sets = (prompts.ranking, prompts.sizing, prompts.reporting)
    prompts = TaskPrompts(*(replace(part, templates=names) for part in sets))
    found = discover(model, TASK, granularities=("head",), prompts=prompts, **changes)
    assert found.circuits["head"].interval == why


def test_each_template_gives_half_of_its_prompts():
    model = make_tiny_model()
    prompts = made_up_prompts(model, n=14).ranking.subset(range(13))
    names = ("a",) * 6 + ("b",) * 3 + ("c", "d", "e", "f")
    prompts = replace(prompts, templates=names)
    drawn = list(halves(prompts, prompts, n=200, seed=0))
    counts = [[half.templates.count(name) for name in "abcdef"] for half, _ in drawn]
    assert {count[0] for count in counts} == {3}
    assert {count[1] for count in counts} == {1, 2}
    assert {sum(count) for count in counts} == {6, 7}
    for column in range(2, 6):  # alone in their templates, they are in as often as not
        assert 70 < sum(count[column] for count in counts) < 130
    assert len({tuple(half.clean.flatten().tolist()) for half, _ in drawn}) > 100


@pytest.mark.parametrize("redraws", [-1, 1])
def test_a_single_half_has_no_spread(redraws):
    with pytest.raises(ValueError, match="redraws must be 0"):
        DiscoverConfig(redraws=redraws)


@pytest.mark.newest
@pytest.mark.slow
def test_two_runs_with_one_seed_are_equal():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities=("mlp", "edge", "attention_edge"), seed=3, redraws=2)
    first, second = (discover(model, TASK, config, prompts=prompts).to_json() for _ in range(2))
    assert first == second


def test_a_saved_discovery_is_loaded_as_it_was(tmp_path):
    model = make_tiny_model()
    config = DiscoverConfig(granularities=("head", "attention_edge"), redraws=2)
    found = discover(model, TASK, config, prompts=made_up_prompts(model))
    found.save(tmp_path / "found.json")
    assert Discovery.load(tmp_path / "found.json").to_json() == found.to_json()


def test_the_steps_that_are_told_of_are_about_the_work_that_was_foreseen():
    config = DiscoverConfig(granularities=("head", "edge"))
    told = []
    discover(INDUCTION.model, TASK, config, prompts=known_prompts(), on_step=told.append)
    assert 0.3 < sum(map(work_of_step, told)) / work_of_search(config) < 1.3


def test_a_model_that_cannot_do_the_task_is_refused():
    swapped = [
        replace(prompts, answers=prompts.wrong_answers, wrong_answers=prompts.answers)
        for prompts in (INDUCTION.draw(12, seed) for seed in range(3))
    ]
    with pytest.raises(ValueError, match="the model does not do the task"):
        discover(INDUCTION.model, TASK, prompts=TaskPrompts(*swapped))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'magic'; choose one of attribution"):
        DiscoverConfig(method="magic")


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="unknown granularity 'neuron'; choose one of head"):
        DiscoverConfig(granularities=("head", "neuron"))


def test_no_granularity_is_refused():
    with pytest.raises(ValueError, match="no granularity given"):
        DiscoverConfig(granularities=())


def test_an_unknown_ablation_is_refused():
    with pytest.raises(ValueError, match="unknown ablation 'noise'"):
        DiscoverConfig(ablation="noise")


@pytest.mark.parametrize("target", [0.0, -0.5, 1.01, float("nan")])
def test_a_target_out_of_range_is_refused(target):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        DiscoverConfig(target=target)


@pytest.mark.parametrize("granularity", ["head", "edge", "attention_edge"])
def test_what_a_circuit_written_by_hand_leaves_out_does_nothing(granularity):
    config = DiscoverConfig(target=0.99, granularities=(granularity,))
    found = discover(INDUCTION.model, TASK, config, prompts=known_prompts()).circuits[granularity]
    assert found.faithfulness_of_rest == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_selection_changes_the_order_in_which_components_are_taken():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    curves = set()
    for selection in ("absolute", "signed", "greedy"):
        config = DiscoverConfig(granularities=("edge",), selection=selection)
        found = discover(model, TASK, config, prompts=prompts).circuits["edge"]
        assert found.faithfulness_sizing >= config.target
        assert found.circuit.provenance["selection"] == selection
        curves.add(found.curve_faithfulness)
    assert len(curves) > 1


@pytest.mark.slow
def test_fields_of_the_config_can_be_given_by_themselves():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(target=0.5, granularities=("head",), seed=3)
    found = discover(model, TASK, config, prompts=prompts)
    assert (
        discover(model, TASK, prompts=prompts, target=0.5, granularities="heads", seed=3) == found
    )
    assert discover(model, TASK, replace(config, seed=0), prompts=prompts, seed=3) == found
    with pytest.raises(TypeError, match="granularity"):
        discover(model, TASK, prompts=prompts, granularity="head")


def test_a_discovery_is_shown_in_a_line_and_equals_what_was_saved(tmp_path):
    found = discover(INDUCTION.model, TASK, prompts=known_prompts(), granularities=("head", "edge"))
    shown = repr(found)
    assert shown.startswith("Discovery(made_up: ") and shown.endswith("edges at 90 %)")
    assert "\n" not in shown and len(repr(found.circuits["edge"])) < 120
    found.save(tmp_path / "d.json")
    assert Discovery.load(tmp_path / "d.json") == found


def test_the_options_of_a_method_are_passed_on_and_unknown_ones_refused():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities="head", method="eap-ig", method_options={"steps": 2})
    assert config.method == "integrated_gradients"
    found = discover(model, TASK, config, prompts=prompts).circuits["head"].circuit.scores
    experiment = prepare_experiment(model, prompts.ranking, metric=TASK.metric)
    two = integrated_gradients(experiment, steps=2, attention_edges=False).edges
    assert torch.equal(found, two)
    assert not torch.equal(found, integrated_gradients(experiment, attention_edges=False).edges)
    with pytest.raises(ValueError, match="no option 'step'; its options are steps"):
        discover(model, TASK, replace(config, method_options={"step": 2}), prompts=prompts)


def test_a_method_and_a_metric_of_ones_own_can_be_named():
    def own_method(experiment, *, attention_edges=True, factor=1.0):
        scores = attribution_patching(experiment, attention_edges=attention_edges)
        return replace(scores, edges=factor * scores.edges, method="own")

    register_metric("own_metric", lambda logits, _prompts, _clean: logits[:, 0])
    register_method("own", own_method, "Attribution patching times a factor.")
    try:
        model = make_tiny_model()
        task = replace(TASK, metric="own_metric")
        clean, corrupted = (torch.randint(model.cfg.d_vocab, (12, 5)) for _ in range(2))
        with torch.no_grad():
            drop = model(clean)[:, -1, 0] - model(corrupted)[:, -1, 0]
        higher = drop[:, None] > 0
        prompts = Prompts(
            clean=clean.where(higher, corrupted),
            corrupted=corrupted.where(higher, clean),
            lengths=torch.full((12,), 5),
            answers=torch.zeros(12, 1, dtype=torch.long),
            wrong_answers=torch.ones(12, 1, dtype=torch.long),
            templates=("one",) * 12,
        )
        sets = TaskPrompts(prompts, prompts, prompts)
        found = discover(
            model, task, prompts=sets, method="own", method_options={"factor": 3.0},
            granularities="mlp",
        )  # fmt: skip
        assert found.metric_full - found.metric_empty == pytest.approx(drop.abs().mean().item())
        experiment = prepare_experiment(model, prompts, metric="own_metric")
        expected = 3 * attribution_patching(experiment).edges
        torch.testing.assert_close(found.circuits["mlp"].circuit.scores, expected)
        with pytest.raises(ValueError, match="'own' is already registered"):
            register_method("own", attribution_patching, "Another.")
        with pytest.raises(ValueError, match="'logit_diff' is already registered"):
            register_metric("logit_diff", lambda logits, _prompts, _clean: logits[:, 0])
    finally:
        name: Any = "own"  # a method of the package's choices it is only here
        del METHODS[name], ATTRIBUTION_METHODS[name], METRICS["own_metric"]
