"""Runs of a window of positions against runs of whole prompts, which compute every position."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from circuits.attribute import METHODS
from circuits.attribute.in_circuit import attention_edge_effects_in, edge_effects_in
from circuits.gate.gate import add_gate
from circuits.graph import Graph
from circuits.intervene.ablate import run_attention_edges, run_edges, run_nodes
from circuits.intervene.experiment import prepare_experiment
from circuits.intervene.window import divide, whole_part
from circuits.models.backend import backend_of
from tests.helpers import (
    GROUPED,
    make_prompts,
    make_tiny_model,
    needs_hooked_transformer,
    pad_together,
)

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}
LLAMA = {**GROUPED, "n_layers": 3}
MODELS = {
    "gpt": ({}, "follow"),
    "llama": (LLAMA, "follow"),
    "gated llama": (LLAMA, "follow"),
    "gated llama, gates held": (LLAMA, "clean"),
    "clipped": ({"clip_qkv": 0.3}, "follow"),
    "alibi": ({"positional_embedding_type": "alibi"}, "follow"),
}


def changed_early(model):
    """Prompts of three lengths that change at several positions, one of them before its last."""
    short, long = (make_prompts(model, batch=4, pos=pos, templates=1) for pos in (5, 9))
    both = pad_together(short, long)
    corrupted = both.corrupted.clone()
    for row, place in ((0, 1), (1, 3), (4, 6), (5, 6), (6, 2)):
        corrupted[row, place] = (both.clean[row, place] - 2 + 5) % 20 + 2
    return replace(both, corrupted=corrupted)


@pytest.fixture(params=MODELS, ids=str)
def experiments(request, monkeypatch):
    """An experiment whose prompts are cut to windows, and one that runs them as wholes."""
    monkeypatch.setattr("circuits.intervene.window.COST_OF_A_RUN", 16**2)
    overrides, gates = MODELS[request.param]
    model = make_tiny_model(**overrides)
    model = add_gate(model, bias=0.3) if "gated" in request.param else model
    prompts = changed_early(model)
    found = [prepare_experiment(model, prompts, metric="logit_diff", gates=gates) for _ in "ab"]
    vars(found[1])["own_parts"] = [whole_part(found[1], slice(0, len(prompts)))]
    return found


@needs_hooked_transformer
def test_circuits_run_in_windows_as_on_whole_prompts(experiments):
    cut, whole = experiments
    graph = cut.graph
    torch.testing.assert_close(cut.full, whole.full, **CLOSE)
    generator = torch.Generator().manual_seed(0)
    batch, pos = cut.prompts.clean.shape
    for share in (0.3, 0.8):
        nodes = torch.rand(graph.n_sources, generator=generator) < share
        edges = torch.rand(graph.mask.shape, generator=generator) < share
        shape = (batch, graph.n_layers, graph.n_heads, pos, pos)
        kept = torch.rand(shape, generator=generator) < share
        for run, circuit in ((run_nodes, nodes), (run_edges, edges), (run_attention_edges, kept)):
            torch.testing.assert_close(run(cut, circuit), run(whole, circuit), **CLOSE)


@needs_hooked_transformer
@pytest.mark.parametrize("method", ["attribution_patching", "integrated_gradients"])
def test_scores_in_windows_are_those_of_whole_prompts(experiments, method):
    in_windows, on_wholes = (METHODS[method](one) for one in experiments)
    torch.testing.assert_close(in_windows.edges, on_wholes.edges, **CLOSE)
    torch.testing.assert_close(in_windows.attention_edges, on_wholes.attention_edges, **CLOSE)


@needs_hooked_transformer
def test_effects_in_a_circuit_are_those_of_whole_prompts(experiments):
    graph, (batch, pos) = experiments[0].graph, experiments[0].prompts.clean.shape
    generator = torch.Generator().manual_seed(0)
    edges = graph.mask & (torch.rand(graph.mask.shape, generator=generator) < 0.5)
    shape = (batch, graph.n_layers, graph.n_heads, pos, pos)
    kept = torch.rand(shape, generator=generator) < 0.5
    torch.testing.assert_close(*(edge_effects_in(one, edges) for one in experiments), **CLOSE)
    torch.testing.assert_close(
        *(attention_edge_effects_in(one, kept) for one in experiments), **CLOSE
    )


@needs_hooked_transformer
def test_some_prompts_of_an_experiment_are_an_experiment_on_them(experiments):
    rows = [5, 0, 6, 3]
    for one in experiments:
        _ = one.full, one.empty  # so that they are cut, not computed anew
        alone = prepare_experiment(
            one.model, one.prompts.subset(rows), metric=one.metric, gates=one.gates
        )
        some = one.subset(rows)
        torch.testing.assert_close(some.full, alone.full, **CLOSE)
        torch.testing.assert_close(some.empty, alone.empty, **CLOSE)
        torch.testing.assert_close(some.clean_logits, alone.clean_logits, **CLOSE)
        edges = torch.rand(one.graph.mask.shape) < 0.5
        torch.testing.assert_close(run_edges(some, edges), run_edges(alone, edges), **CLOSE)


@needs_hooked_transformer
@pytest.mark.parametrize(
    ("overrides", "ablation", "n_positions"),
    [
        ({}, "corrupted", 4 + 2 + 1 + 1 + 3 + 3 + 7 + 1),  # from the change to the last, by hand
        (LLAMA, "corrupted", 4 + 2 + 1 + 1 + 3 + 3 + 7 + 1),
        ({}, "zero", 4 * 5 + 4 * 9),  # no padding
        ({"positional_embedding_type": "alibi"}, "corrupted", 4 * 5 + 4 * 9),
    ],
)
def test_a_circuit_is_run_at_the_positions_that_count_only(
    monkeypatch, overrides, ablation, n_positions
):
    monkeypatch.setattr("circuits.intervene.window.COST_OF_A_RUN", 0)
    model = make_tiny_model(**overrides)
    experiment = prepare_experiment(
        model, changed_early(model), metric="logit_diff", ablation=ablation
    )
    edges = experiment.graph.mask & (torch.rand(experiment.graph.mask.shape) < 0.5)
    experiment.full  # noqa: B018 -- takes a run of its own
    seen = []
    with model.hooks([("blocks.1.hook_resid_pre", lambda act, hook: seen.append(act.shape[:2]))]):
        run_edges(experiment, edges)
    assert sum(batch * pos for batch, pos in seen) == n_positions


def test_prompts_are_divided_as_costs_least(tiny_model, monkeypatch):
    prompts = changed_early(tiny_model)
    lengths = prompts.lengths.tolist()
    needed = [4, 2, 1, 1, 3, 3, 7, 1]  # from the change to the last, by hand

    def cost(groups: list[list[int]], a_run: float) -> float:
        widths = [max(needed[row] for row in rows) for rows in groups]
        if any(
            width > lengths[row] for width, rows in zip(widths, groups, strict=True) for row in rows
        ):
            return float("inf")
        return sum(a_run + len(rows) * width for width, rows in zip(widths, groups, strict=True))

    for a_run in (0.0, 1.5, 4.0, 10.0, 100.0):
        monkeypatch.setattr("circuits.intervene.window.COST_OF_A_RUN", a_run * 16**2)
        windows = divide(Graph(2, 2), prompts, 16, n_parts=1, goes_on=True)
        found = [window.index.tolist() for window in windows]
        assert sorted(row for rows in found for row in rows) == list(range(8))
        for window in windows:
            assert window.at[:, -1].tolist() == [lengths[row] - 1 for row in window.index.tolist()]
        least = min(cost(groups, a_run) for groups in partitions(list(range(8))))
        assert cost(found, a_run) == pytest.approx(least)
        assert sum(a_run + window.at.numel() for window in windows) == pytest.approx(least)


def partitions(rows):
    """Every way to divide things into groups: each joins one of the others' groups, or none."""
    if not rows:
        yield []
        return
    for groups in partitions(rows[1:]):
        yield [[rows[0]], *groups]
        for number in range(len(groups)):
            yield [*groups[:number], [rows[0], *groups[number]], *groups[number + 1 :]]


class _Copied(TorchDispatchMode):
    """Notes how many numbers each copy made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@needs_hooked_transformer
@torch.no_grad()
def test_weights_that_lie_as_they_are_read_are_not_copied_and_lie_as_before_afterwards():
    model = make_tiny_model(**LLAMA, d_mlp=64, d_vocab=500)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    tokens = torch.tensor([[3, 4]])
    expected = model(tokens)
    with backend_of(model).weights_as_read(model), _Copied() as copied:
        found = model(tokens)
    assert torch.equal(found, expected)
    assert max(copied.sizes) < 16 * 32  # the smallest matrix of weights has as many numbers
    assert all(weight.is_contiguous() for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
