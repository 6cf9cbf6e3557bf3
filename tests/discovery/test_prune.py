"""Pruning: what is left is known, or is checked by code that shares nothing with it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from circuits.attribute import attribution_patching
from circuits.attribute.in_circuit import edge_effects_in
from circuits.choices import GRANULARITIES
from circuits.discovery import prune as module
from circuits.discovery.hand_built import HAND_BUILT
from circuits.discovery.prune import Pruned, prune
from circuits.discovery.ranked import (
    Ranked,
    RankedAttentionEdges,
    RankedComponents,
    first_of,
    search_ranked,
)
from circuits.discovery.search import (
    Search,
    faithfulness_error,
    group_faithfulness,
)
from circuits.gate.gate import add_gate
from circuits.intervene.experiment import Experiment, prepare_experiment
from circuits.results.discovery import DiscoverConfig
from tests.helpers import (
    make_prompts,
    make_tiny_model,
    pad_together,
    skip_file_without_hooked_transformer,
)
from tests.models import slow_reference as slow

skip_file_without_hooked_transformer()


def ranked_of(experiment: Experiment, granularity: str, selection: str = "absolute") -> Ranked:
    scores = attribution_patching(experiment)
    if granularity == "attention_edge":
        return RankedAttentionEdges.of(scores, experiment.prompts, selection)
    return RankedComponents.of(scores, granularity, selection)


def starting_from(search: Search, ranked: Ranked, experiment: Experiment, n: Sequence[int]):
    """The search as if it had chosen so many components of each group."""
    sizes = torch.tensor(n)
    values = ranked.run(experiment, first_of(ranked.orders, sizes)).double()
    return replace(search, sizes=sizes[None], values=values[None], chosen=sizes)


@pytest.mark.parametrize("name", HAND_BUILT)
def test_of_everything_the_edges_of_a_circuit_written_by_hand_remain(name):
    built = HAND_BUILT[name]()
    experiment = prepare_experiment(built.model, built.draw(12, 1), metric="logit_diff")
    ranked = ranked_of(experiment, "edge")
    everything = len(ranked.orders[0])
    search = starting_from(
        search_ranked(ranked, experiment, 0.99), ranked, experiment, [everything]
    )
    pruned = prune(ranked, experiment, search)
    graph = experiment.graph
    places = [divmod(flat, graph.n_destinations) for flat in sorted(pruned.chosen[0].tolist())]
    assert {graph.edge_name(*place) for place in places} == set(built.edges)
    assert pruned.is_minimal


MODELS = {
    "plain": {},
    "gated": {},
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "norms behind": {"normalization_type": "RMS", "use_normalization_before_and_after": True},
}


def experiment_of(kind: str, ablation: str = "corrupted") -> Experiment:
    """A random model in double precision on templates of two lengths, whose prompts take turns."""
    model = make_tiny_model(dtype=torch.float64, **MODELS[kind])
    model = add_gate(model, bias=0.3) if kind == "gated" else model
    short, long = (make_prompts(model, batch=3, pos=pos, templates=1, seed=pos) for pos in (4, 6))
    prompts = pad_together(short, long).subset([3, 0, 1, 4, 2, 5])
    return prepare_experiment(model, prompts, metric="logit_diff", ablation=ablation)


def heads_kept(experiment: Experiment, ranked: Any, chosen: Sequence[torch.Tensor]):
    """The chosen attention edges of each prompt by the name of their head, set one by one."""
    cfg, prompts = experiment.model.cfg, experiment.prompts
    batch, pos = prompts.clean.shape
    kept = {f"a{layer}.h{head}": torch.zeros(batch, pos, pos, dtype=torch.bool)
            for layer in range(cfg.n_layers) for head in range(cfg.n_heads)}  # fmt: skip
    for template, flat in zip(ranked.by_template, chosen, strict=True):
        for row in range(batch):
            length = int(prompts.lengths[row])
            for one in flat.tolist() if prompts.templates[row] == template else []:
                head, query, key = one // length**2, one // length % length, one % length
                kept[f"a{head // cfg.n_heads}.h{head % cfg.n_heads}"][row, query, key] = True
    return kept


def slow_metric(experiment: Experiment, ranked: Ranked, granularity: str, chosen):
    """The metric of every prompt with the chosen components intact, by the slow reference."""
    model: Any = experiment.model
    prompts = experiment.prompts
    if granularity == "attention_edge":
        return slow.run_attention_circuit(model, prompts, heads_kept(experiment, ranked, chosen))
    graph = experiment.graph
    every = [graph.edge_name(*place) for place in graph.mask.nonzero().tolist()]
    if granularity == "edge":
        names = {graph.edge_name(*divmod(i, graph.n_destinations)) for i in chosen[0].tolist()}
    else:  # The others of its kind are out, with all of their edges.
        kind = "a" if granularity == "head" else "m"
        nodes = {graph.sources[row] for row in chosen[0].tolist()}
        names = {
            name for name in every
            if (src := name.split("->")[0]) in nodes or src == "input" or src[0] != kind
        }  # fmt: skip
    return slow.run_circuit(model, prompts, names)


def slow_faithfulness(experiment: Experiment, ranked: Ranked, granularity: str):
    """A function from what is chosen to F of each group, by the slow reference alone."""
    model: Any = experiment.model
    prompts, graph = experiment.prompts, experiment.graph
    groups = ranked.groups(prompts).tolist()
    every = {graph.edge_name(*place) for place in graph.mask.nonzero().tolist()}
    full, empty = (slow.run_circuit(model, prompts, names) for names in (every, set()))

    def of(chosen: Sequence[torch.Tensor]) -> list[float]:
        values = slow_metric(experiment, ranked, granularity, chosen)
        found = []
        for group in range(len(chosen)):
            rows = [row for row, one in enumerate(groups) if one == group]
            gain = sum(float(values[row] - empty[row]) for row in rows)
            found.append(gain / sum(float(full[row] - empty[row]) for row in rows))
        return found

    return of


@pytest.mark.parametrize(
    ("kind", "ablation"),
    [*((kind, "corrupted") for kind in MODELS), ("plain", "mean"), ("norms behind", "mean")],
)
def test_effects_in_a_circuit_are_the_slow_references(kind, ablation):
    experiment = experiment_of(kind, ablation)
    model: Any = experiment.model
    prompts, graph = experiment.prompts, experiment.graph
    edges = graph.mask & (torch.rand(graph.mask.shape) < 0.6)
    names = {graph.edge_name(*place) for place in edges.nonzero().tolist()}
    expected = slow.score_in_circuit(model, prompts, edges=names, ablation=ablation).edges
    effects = edge_effects_in(experiment, edges)
    for src, dest in graph.mask.nonzero().tolist():
        known = expected[graph.edge_name(src, dest)].mean()
        torch.testing.assert_close(effects[src, dest], known, atol=1e-9, rtol=1e-6)
    ranked: Any = ranked_of(experiment, "attention_edge")
    chosen = [order[torch.rand(len(order)) < 0.6] for order in ranked.orders]
    kept = heads_kept(experiment, ranked, chosen)
    expected = slow.score_in_circuit(model, prompts, kept=kept, ablation=ablation).attention_edges
    effects = ranked.effects(experiment, chosen)
    for template, flat, found in zip(ranked.by_template, chosen, effects, strict=True):
        rows = [row for row, name in enumerate(prompts.templates) if name == template]
        length = int(prompts.lengths[rows[0]])
        for one, effect in zip(flat.tolist(), found, strict=True):
            head, query, key = one // length**2, one // length % length, one % length
            known = expected[f"a{head // 2}.h{head % 2}"][rows, query, key].mean()
            torch.testing.assert_close(effect, known, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "granularity"),
    [*(("plain", granularity) for granularity in GRANULARITIES), ("gated", "edge")],
)
def test_no_single_component_of_a_pruned_circuit_can_go(kind, granularity):
    experiment = experiment_of(kind)
    ranked = ranked_of(experiment, granularity)
    search = search_ranked(ranked, experiment, 0.8)
    pruned = prune(ranked, experiment, search)
    assert pruned.is_minimal
    chosen = list(pruned.chosen)
    measure = slow_faithfulness(experiment, ranked, granularity)
    found = measure(chosen)
    said = search_faithfulness(search, pruned)
    assert min(found) >= 0.8 - 1e-6
    assert found == pytest.approx(said, abs=1e-6)
    for group, one in enumerate(chosen):
        for place in range(len(one)):
            without = torch.cat([one[:place], one[place + 1 :]])
            tried = [*chosen[:group], without, *chosen[group + 1 :]]
            left = measure(tried)
            assert left[group] < 0.8
            assert left[:group] + left[group + 1 :] == pytest.approx(
                found[:group] + found[group + 1 :]
            )


def search_faithfulness(search: Search, pruned: Pruned) -> list[float]:
    values = pruned.values[None]
    return group_faithfulness(values, search.full, search.empty, search.groups)[0].tolist()


def test_much_goes_from_a_prefix_of_edges():
    experiment = experiment_of("plain")
    ranked = ranked_of(experiment, "edge")
    search = search_ranked(ranked, experiment, 0.8)
    prefix = ranked.circuit(first_of(ranked.orders, search.chosen))
    pruned = ranked.circuit(prune(ranked, experiment, search).chosen)
    assert pruned.size < prefix.size
    assert not (pruned.edges & ~prefix.edges).any()


def test_templates_are_pruned_as_if_each_were_alone():
    experiment = experiment_of("plain")
    scores = attribution_patching(experiment)
    together = ranked_of(experiment, "attention_edge")
    pruned = prune(together, experiment, search_ranked(together, experiment, 0.8)).chosen
    for number, (template, rows) in enumerate(experiment.prompts.groups().items()):
        part = experiment.prompts.subset(rows)
        alone = prepare_experiment(experiment.model, part, metric="logit_diff")
        ranked = RankedAttentionEdges.of(scores, part, "absolute")
        assert list(ranked.by_template) == [template]
        left = prune(ranked, alone, search_ranked(ranked, alone, 0.8)).chosen[0]
        assert left.tolist() == pruned[number].tolist()


def test_at_a_target_of_one_what_does_nothing_goes():
    built = HAND_BUILT["induction"]()
    experiment = prepare_experiment(built.model, built.draw(12, 1), metric="logit_diff")
    ranked = ranked_of(experiment, "edge")
    search = search_ranked(ranked, experiment, 1.0)
    pruned = prune(ranked, experiment, search)
    assert search_faithfulness(search, pruned)[0] == pytest.approx(1, abs=1e-5)
    assert len(pruned.chosen[0]) >= len(built.edges)


def test_an_empty_circuit_stays_empty_and_costs_nothing():
    experiment = experiment_of("plain")
    ranked = ranked_of(experiment, "edge")
    search = starting_from(search_ranked(ranked, experiment, 0.8), ranked, experiment, [0])
    pruned = prune(ranked, experiment, search)
    assert [len(one) for one in pruned.chosen] == [0]
    assert (pruned.n_trials, pruned.n_effects, pruned.is_minimal) == (0, 0, True)


def test_a_circuit_of_which_all_is_needed_stays_as_it_is():
    built = HAND_BUILT["gated_copy"]()
    experiment = prepare_experiment(built.model, built.draw(12, 1), metric="logit_diff")
    ranked = ranked_of(experiment, "edge")
    search = search_ranked(ranked, experiment, 0.99)
    known = [experiment.graph.edge_index(name) for name in built.edges]
    flat = torch.tensor([src * experiment.graph.n_destinations + dest for src, dest in known])
    only = replace(ranked, order=flat)
    pruned = prune(only, experiment, starting_from(search, only, experiment, [len(flat)]))
    assert pruned.chosen[0].tolist() == flat.tolist()


def test_where_the_budget_ends_it_pruning_says_so_and_holds_the_target(monkeypatch):
    experiment = experiment_of("plain")
    ranked = ranked_of(experiment, "edge")
    search = search_ranked(ranked, experiment, 0.8)
    monkeypatch.setattr(module, "BUDGET", 0)
    monkeypatch.setattr(module, "LEAST_BUDGET", 12)
    told: list[None] = []
    pruned = prune(ranked, experiment, search, on_trial=lambda: told.append(None))
    assert not pruned.is_minimal
    assert pruned.n_trials == len(told) <= 12
    assert search_faithfulness(search, pruned)[0] >= 0.8


def test_the_error_of_faithfulness_is_that_of_means_of_resamples():
    generator = torch.Generator().manual_seed(0)
    full = 3 + torch.randn(400, generator=generator).double()
    empty = 0.3 * torch.randn(400, generator=generator).double()
    values = 0.8 * full + 0.5 * torch.randn(400, generator=generator).double()
    groups = (torch.arange(400) % 4 == 0).long()
    errors = faithfulness_error(values[None], full, empty, groups)[0]
    for group, error in enumerate(errors):
        rows = (groups == group).nonzero()[:, 0]
        drawn = rows[torch.randint(len(rows), (4000, len(rows)), generator=generator)]
        shares = (values - empty)[drawn].sum(dim=1) / (full - empty)[drawn].sum(dim=1)
        assert error.item() == pytest.approx(shares.std().item(), rel=0.05)
    alone = faithfulness_error(values[None, :1], full[:1], empty[:1], groups[:1] * 0)
    assert alone.tolist() == [[0.0]]


def test_by_a_margin_the_rest_stays_above_the_target():
    experiment = experiment_of("plain")
    ranked = ranked_of(experiment, "edge")
    search = search_ranked(ranked, experiment, 0.8)
    everything = [len(ranked.orders[0])]
    search = starting_from(search, ranked, experiment, everything)
    close, wide = (prune(ranked, experiment, search, margin=margin) for margin in (0, 2))
    assert wide.is_minimal and len(wide.chosen[0]) > len(close.chosen[0])

    def surely(chosen):
        metric = ranked.run(experiment, [chosen]).double()
        mean = search_faithfulness(search, replace(wide, values=metric))[0]
        over = metric - experiment.empty - mean * (experiment.full - experiment.empty)
        gap = (experiment.full - experiment.empty).mean()
        return mean - 2 * float(over.double().std() / len(metric) ** 0.5 / gap)

    chosen = wide.chosen[0]
    assert surely(chosen) >= 0.8 - 1e-6
    for place in range(len(chosen)):
        assert surely(torch.cat([chosen[:place], chosen[place + 1 :]])) < 0.8


def test_a_margin_is_of_circuits_that_are_pruned():
    assert DiscoverConfig(prune=True, prune_margin=1).prune_margin == 1
    with pytest.raises(ValueError, match="set prune as well"):
        DiscoverConfig(prune_margin=1)
    with pytest.raises(ValueError, match="must be 0 or more"):
        DiscoverConfig(prune=True, prune_margin=-1)
