"""The fast code against the slow one of slow_reference.py, architecture by architecture.

Both compute the same numbers in float64, in different order: they may differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

from circuits.attribute import (
    attribution_patching,
    exact_edge_effects,
    integrated_gradients,
)
from circuits.gate.gate import add_gate
from circuits.graph import Graph
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import prepare_experiment
from circuits.prompts import Prompts
from tests.helpers import (
    make_prompts,
    make_tiny_model,
    pad_together,
    skip_file_without_hooked_transformer,
)
from tests.models import slow_reference as slow

pytestmark = pytest.mark.slow

skip_file_without_hooked_transformer()

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
GROUPED = {"n_heads": 4, "n_key_value_heads": 2, "d_head": 4}
AFTER = {"normalization_type": "RMS", "use_normalization_before_and_after": True}
GATED = {"gated_mlp": True, "act_fn": "silu"}
LLAMA = {"normalization_type": "RMS"} | GATED | ROTARY | GROUPED


def _model(**overrides: Any) -> HookedTransformer:
    return make_tiny_model(dtype=torch.float64, **overrides)


def _folded(**overrides: Any) -> HookedTransformer:
    """The weights of the norms folded into what follows, as TransformerLens does by default."""
    model = _model(**overrides)
    model.process_weights_()
    return model


def _without_attention_biases() -> HookedTransformer:
    """TransformerLens keeps the biases of such models as zeros."""
    model = _model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn.b_" in name or ".attn._b_" in name:
                parameter.zero_()
    return model


ARCHITECTURES: dict[str, Callable[[], HookedTransformer]] = {
    "layer norm": _model,
    "layer norm, folded": _folded,
    "RMS norm": lambda: _model(normalization_type="RMS"),
    "RMS norm, folded": lambda: _folded(normalization_type="RMS"),
    "no norm": lambda: _model(normalization_type=None),
    "no attention biases": _without_attention_biases,
    "rotary, adjacent pairs": lambda: _model(**ROTARY, rotary_adjacent_pairs=True),
    "rotary, halves": lambda: _model(**ROTARY, rotary_adjacent_pairs=False),
    "grouped queries": lambda: _model(**GROUPED),
    "as many keys as queries": lambda: _model(n_key_value_heads=2),
    "gated MLP": lambda: _model(gated_mlp=True, act_fn="silu"),
    "parallel MLP": lambda: _model(parallel_attn_mlp=True),
    "Pythia": lambda: _model(parallel_attn_mlp=True, **ROTARY, rotary_adjacent_pairs=False),
    "Llama": lambda: _model(**LLAMA),
    "attention only": lambda: _model(attn_only=True),
    "QK norm": lambda: _model(use_qk_norm=True),
    "Qwen 3": lambda: _model(use_qk_norm=True, **LLAMA),
    "soft caps": lambda: _model(attn_scores_soft_cap=0.5, output_logits_soft_cap=1.0),
    "scaled by layer": lambda: _model(scale_attn_by_inverse_layer_idx=True),
    "local attention": lambda: _model(
        use_local_attn=True, window_size=2, attn_types=["local", "global"]
    ),
    "BLOOM": lambda: _model(positional_embedding_type="alibi", post_embedding_ln=True),
    "attention sinks": lambda: _model(use_attention_sinks=True),
    "clipped queries, keys and values": lambda: _model(clip_qkv=0.3),
    "norms behind heads and MLPs": lambda: _model(**AFTER),
    "Gemma 2": lambda: _model(
        **LLAMA | AFTER,
        attn_scores_soft_cap=0.5,
        output_logits_soft_cap=1.0,
        use_local_attn=True,
        window_size=2,
        attn_types=["global", "local"],
    ),
    "Gemma 3": lambda: _model(**LLAMA | AFTER, use_qk_norm=True),
    "OLMo 2": lambda: _model(
        **ROTARY, **GATED, normalization_type="RMS", original_architecture="Olmo2ForCausalLM"
    ),
    "gated attention, norms behind": lambda: add_gate(_model(**AFTER), bias=0.1),
    "gated attention": lambda: add_gate(_model(), bias=0.1),
    "gated attention, Llama": lambda: add_gate(_model(**LLAMA), bias=0.1),
    "gated attention, parallel": lambda: add_gate(_model(parallel_attn_mlp=True)),
}
MIXED = ["layer norm", "Llama", "gated attention, Llama"]
MEANS = ["layer norm", "gated attention, Llama", "gated attention, norms behind", "OLMo 2"]
# What is put in place of an activation is chosen before any architecture reads it: each has the
# corrupted run's, and zeros those that differ in what stands behind heads and MLPs.
REPLACED = [(name, "corrupted") for name in ARCHITECTURES] + [(name, "zero") for name in MEANS]
WITH_ABLATION = pytest.mark.parametrize(("model", "ablation"), REPLACED, indirect=["model"])


@cache
def _built(name: str) -> HookedTransformer:
    """A model that the tests only read."""
    return ARCHITECTURES[name]()


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    return _built(request.param)


@pytest.fixture
def prompts(model: HookedTransformer) -> Prompts:
    return make_prompts(model, batch=4, pos=5)


def test_the_slow_forward_pass_is_the_model(model, prompts):
    with torch.no_grad():
        run = slow.forward(model, slow.embedding(model, prompts.clean))
        expected, cache = model.run_with_cache(prompts.clean)
    torch.testing.assert_close(run.logits, expected)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            pattern, z = run.pattern[f"a{layer}.h{head}"], run.z[f"a{layer}.h{head}"]
            torch.testing.assert_close(pattern, cache["pattern", layer][:, head])
            torch.testing.assert_close(z, cache["z", layer][:, :, head])


def test_the_graph_has_an_edge_wherever_the_model_reads(model, prompts):
    graph = prepare_experiment(model, prompts, metric="logit_diff").graph
    read = slow.sources_of_destinations(model)
    assert {f"{src}->{dest}" for dest in read for src in read[dest]} == _names(graph, graph.mask)


@WITH_ABLATION
def test_attribution_patching_scores_are_the_slow_ones(model, prompts, ablation):
    scores = _fast(attribution_patching, model, prompts, ablation=ablation)
    _assert_same(scores, slow.score(model, prompts, ablation=ablation), prompts)


@pytest.mark.parametrize("name", MEANS)
def test_scores_against_the_mean_are_the_slow_ones(name):
    prompts = make_prompts(_built(name), batch=5, pos=5)
    scores = _fast(attribution_patching, _built(name), prompts, ablation="mean")
    _assert_same(scores, slow.score(_built(name), prompts, ablation="mean"), prompts)


def test_integrated_gradients_are_the_slow_mean_over_the_path(model, prompts):
    scores = _fast(integrated_gradients, model, prompts, steps=3)
    _assert_same(scores, slow.score(model, prompts, fractions=[1 / 3, 2 / 3, 1.0]), prompts)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", MEANS)
def test_integrated_gradients_start_from_what_ablation_gives(name, ablation):
    prompts = make_prompts(_built(name), batch=5, pos=5)
    scores = _fast(integrated_gradients, _built(name), prompts, ablation=ablation, steps=3)
    fractions = [1 / 3, 2 / 3, 1.0]
    expected = slow.score(_built(name), prompts, ablation=ablation, fractions=fractions)
    _assert_same(scores, expected, prompts)


@pytest.mark.parametrize("metric", ["prob_diff", "kl_div"])
def test_other_metrics_are_scored_alike(metric):
    model = _built("layer norm")
    prompts = make_prompts(model, batch=4, pos=5)
    scores = _fast(integrated_gradients, model, prompts, metric=metric, steps=3)
    expected = slow.score(model, prompts, metric=metric, fractions=[1 / 3, 2 / 3, 1.0])
    _assert_same(scores, expected, prompts)


@WITH_ABLATION
def test_a_circuit_runs_as_the_slow_loop_over_destinations(model, prompts, ablation):
    experiment = prepare_experiment(model, prompts, metric="logit_diff", ablation=ablation)
    for mask in _random_masks(experiment.graph):
        kept = _names(experiment.graph, mask)
        expected = slow.run_circuit(model, prompts, kept, ablation=ablation)
        torch.testing.assert_close(run_edges(experiment, mask), expected)


@pytest.mark.parametrize("name", MEANS)
def test_a_circuit_in_the_mean_of_its_template_runs_as_the_slow_loop(name):
    model = _built(name)
    prompts = make_prompts(model, batch=5, pos=5)
    experiment = prepare_experiment(model, prompts, metric="logit_diff", ablation="mean")
    for mask in _random_masks(experiment.graph):
        kept = _names(experiment.graph, mask)
        expected = slow.run_circuit(model, prompts, kept, ablation="mean")
        torch.testing.assert_close(run_edges(experiment, mask), expected)


@WITH_ABLATION
def test_all_edges_are_the_model_and_none_is_the_ablated_one(model, prompts, ablation):
    experiment = prepare_experiment(model, prompts, metric="logit_diff", ablation=ablation)
    names = _names(experiment.graph, experiment.graph.mask)
    full = slow.run_circuit(model, prompts, names, ablation=ablation)
    empty = slow.run_circuit(model, prompts, set(), ablation=ablation)
    mask = experiment.graph.mask
    for found in (experiment.full, run_edges(experiment, mask)):
        torch.testing.assert_close(found, full)
    for found in (experiment.empty, run_edges(experiment, torch.zeros_like(mask))):
        torch.testing.assert_close(found, empty)


def test_keys_that_are_shared_and_normed_together_are_refused():
    model = _model(
        **ROTARY,
        n_heads=4,
        d_head=4,
        n_key_value_heads=2,
        normalization_type="RMS",
        original_architecture="Olmo3ForCausalLM",
    )
    prompts = make_prompts(model)
    with pytest.raises(ValueError, match="shares keys between heads and norms them together"):
        prepare_experiment(model, prompts, metric="logit_diff")


def test_exact_effects_are_the_slow_ones(model, prompts):
    experiment = prepare_experiment(model, prompts, metric="logit_diff")
    edges = experiment.graph.mask.nonzero()
    edges = edges[torch.randperm(len(edges))[:4]].tolist()
    names = _names(experiment.graph, experiment.graph.mask)
    full = slow.run_circuit(model, prompts, names)
    without = [
        slow.run_circuit(model, prompts, names - {experiment.graph.edge_name(*edge)})
        for edge in edges
    ]
    expected = torch.stack([(full - values).mean() for values in without])
    torch.testing.assert_close(exact_edge_effects(experiment, edges), expected)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
@pytest.mark.parametrize("name", MIXED)
def test_padding_changes_no_score(name, ablation):
    """Each prompt alone, without padding, gives the scores that the padded batch averages."""
    model = _built(name)
    prompts = _mixed(model)
    alone = [
        slow.score(model, _unpadded(prompts, [row]), ablation=ablation)
        for row in range(len(prompts))
    ]
    scores = _fast(attribution_patching, model, prompts, ablation=ablation)
    _assert_same(scores, _joined(alone, prompts), prompts)


@pytest.mark.parametrize("name", MIXED)
def test_padding_changes_no_score_along_the_path(name):
    model = _built(name)
    prompts = _mixed(model)
    alone = [
        slow.score(model, _unpadded(prompts, [row]), fractions=[1 / 3, 2 / 3, 1.0])
        for row in range(len(prompts))
    ]
    scores = _fast(integrated_gradients, model, prompts, steps=3)
    _assert_same(scores, _joined(alone, prompts), prompts)


@pytest.mark.parametrize("name", MIXED)
def test_padding_changes_no_score_against_the_mean(name):
    """A mean is over one template, and so over prompts of one length."""
    model = _built(name)
    prompts = _mixed(model)
    found: dict[int, slow.SlowScores] = {}
    for rows in prompts.groups().values():
        together = slow.score(model, _unpadded(prompts, rows), ablation="mean")
        found |= {row: _row(together, place) for place, row in enumerate(rows)}
    scores = _fast(attribution_patching, model, prompts, ablation="mean")
    _assert_same(scores, _joined([found[row] for row in sorted(found)], prompts), prompts)


@pytest.mark.parametrize("name", MIXED)
def test_padding_changes_no_circuit(name):
    model = _built(name)
    prompts = _mixed(model)
    experiment = prepare_experiment(model, prompts, metric="logit_diff")
    for mask in _random_masks(experiment.graph):
        kept = _names(experiment.graph, mask)
        rows = range(len(prompts))
        alone = [slow.run_circuit(model, _unpadded(prompts, [row]), kept) for row in rows]
        torch.testing.assert_close(run_edges(experiment, mask), torch.cat(alone))


# ---- building and comparing ----------------------------------------------------------------


def _fast(
    method: Callable[..., Any],
    model: HookedTransformer,
    prompts: Prompts,
    *,
    metric: str = "logit_diff",
    ablation: str = "corrupted",
    **options: int,
) -> Any:
    return method(prepare_experiment(model, prompts, metric=metric, ablation=ablation), **options)


def _names(graph: Graph, mask: Tensor) -> set[str]:
    return {graph.edge_name(src, dest) for src, dest in mask.nonzero().tolist()}


def _random_masks(graph: Graph) -> list[Tensor]:
    """Some edges, and whole nodes: all but the input, and some with it."""
    edges = [(torch.rand(graph.mask.shape) < density) & graph.mask for density in (0.1, 0.5, 0.9)]
    nodes = torch.rand(graph.n_sources, 1) < 0.5
    return [*edges, *(nodes.index_fill(0, torch.tensor(0), value) & graph.mask for value in (0, 1))]


def _mixed(model: HookedTransformer) -> Prompts:
    """Prompts of 4, 6 and 7 tokens, two of each, one after the other."""
    parts = [make_prompts(model, batch=2, pos=pos, templates=1, seed=pos) for pos in (4, 6, 7)]
    return pad_together(*parts).subset([0, 2, 4, 1, 3, 5])  # the templates alternate


def _unpadded(prompts: Prompts, rows: list[int]) -> Prompts:
    """Prompts of one length, without their padding."""
    part = prompts.subset(rows)
    (length,) = set(part.lengths.tolist())
    return replace(part, clean=part.clean[:, :length], corrupted=part.corrupted[:, :length])


def _row(scores: slow.SlowScores, row: int) -> slow.SlowScores:
    return slow.SlowScores(
        {name: values[[row]] for name, values in scores.edges.items()},
        {name: values[[row]] for name, values in scores.attention_edges.items()},
    )


def _joined(parts: list[slow.SlowScores], prompts: Prompts) -> slow.SlowScores:
    """Scores of single prompts as those of all, attention edges padded with zeros."""
    width = prompts.clean.shape[1]

    def pad(values: Tensor) -> Tensor:
        missing = width - values.shape[-1]
        return torch.nn.functional.pad(values, (0, missing, 0, missing))

    return slow.SlowScores(
        {name: torch.cat([part.edges[name] for part in parts]) for name in parts[0].edges},
        {
            name: torch.cat([pad(part.attention_edges[name]) for part in parts])
            for name in parts[0].attention_edges
        },
    )


def _assert_same(scores: Any, expected: slow.SlowScores, prompts: Prompts) -> None:
    """Edges as means over all prompts, attention edges over each template's, as wide as it is."""
    graph = scores.graph
    edges = torch.zeros(graph.mask.shape, dtype=torch.float64)
    for name, values in expected.edges.items():
        edges[graph.edge_index(name)] = values.mean()
    _assert_close(scores.edges, edges)
    _assert_close(scores.nodes, edges.sum(dim=1))
    heads = [[f"a{layer}.h{head}" for head in range(graph.n_heads)] for layer in range(2)]
    assert list(scores.attention_edges) == list(prompts.groups())
    for template, rows in prompts.groups().items():
        width = int(prompts.lengths[rows].max())
        means = [
            torch.stack([expected.attention_edges[name][rows].mean(dim=0) for name in layer])
            for layer in heads
        ]
        assert not torch.stack(means)[..., width:, :].any(), "a padded query has a score"
        _assert_close(scores.attention_edges[template], torch.stack(means)[..., :width, :width])


def _assert_close(found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item()
    assert largest > 1e-6, "a test with nothing to compare"
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * largest)
