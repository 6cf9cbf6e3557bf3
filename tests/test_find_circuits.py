"""Discovery from end to end, on a circuit written by hand and on random models."""

from dataclasses import replace

import pytest
import torch

from circuits.ablate import faithfulness, prepare_experiment, run_edges
from circuits.activations import record_activations, source_outputs
from circuits.attribute import GRANULARITIES, METHODS
from circuits.discovery import DiscoverConfig, Discovery
from circuits.find_circuits import discover, steps_of
from circuits.graph import Graph
from circuits.tasks import Task, TaskPrompts
from circuits.tasks.prompts import Prompts
from tests.helpers import make_tiny_model

N_TOKENS, N_POSITIONS = 12, 7
TASK = Task("made_up", "prompts are given", "logit_diff", lambda _tokenizer, _n, _seed: [])

HEADS = ["a0.h0", "a1.h0"]
EDGES = ["input->a0.h0<v>", "a0.h0->a1.h0<k>", "a1.h0->logits"]


def induction_model(n_distractors=2):
    """Head a0.h0 writes each token's predecessor, head a1.h0 looks it up and copies.

    The residual stream has a space for the token, its position, its predecessor, the answer, and
    one that nothing unembeds: there all the other heads write.
    """
    tokens, positions, before, answer, junk = torch.arange(5 * N_TOKENS).split(N_TOKENS)
    model = make_tiny_model(
        n_heads=1 + n_distractors,
        d_model=5 * N_TOKENS,
        d_head=N_TOKENS,
        d_vocab=N_TOKENS,
        n_ctx=N_POSITIONS,
        attn_only=True,
        normalization_type=None,
        use_attn_scale=False,
    )
    one = torch.eye(N_TOKENS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, tokens] = one
        model.pos_embed.W_pos[:, positions] = one[:N_POSITIONS]
        model.unembed.W_U[answer] = one
        first, second = (block.attn for block in model.blocks)
        first.W_Q[0, positions] = 12 * one.roll(1, 0)  # position i looks for i - 1
        first.W_K[0, positions] = one
        first.W_V[0, tokens] = one
        first.W_O[0, :, before] = one
        second.W_Q[0, tokens] = 3 * one
        second.W_K[0, before] = one
        second.W_V[0, tokens] = one
        second.W_O[0, :, answer] = one
        for head in range(1, 1 + n_distractors):
            for attn in (first, second):
                attn.W_Q[head] = 0.3 * torch.randn(5 * N_TOKENS, N_TOKENS)
                attn.W_K[head] = 0.3 * torch.randn(5 * N_TOKENS, N_TOKENS)
                attn.W_V[head] = torch.randn(5 * N_TOKENS, N_TOKENS)
                attn.W_O[head, :, junk] = torch.randn(N_TOKENS, N_TOKENS)
    return model


def induction_prompts(n, seed):
    """x A B x D x A -> B and not D; the corrupted twin lacks the first A."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(N_TOKENS, generator=generator) for _ in range(n)])
    clean = torch.cat([drawn[:, :6], drawn[:, 1:2]], dim=1)
    corrupted = clean.clone()
    corrupted[:, 1] = drawn[:, 6]
    return Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((n,), N_POSITIONS),
        answers=clean[:, 2:3],
        wrong_answers=clean[:, 4:5],
        templates=("induction",) * n,
    )


def known_prompts():
    return TaskPrompts(ranking=induction_prompts(12, 0), heldout=induction_prompts(12, 1))


def made_up_prompts(model, n=12, length=5, ablation="corrupted"):
    """Random prompts whose right answer is the token that the ablation hurts most."""

    def draw():
        clean = torch.randint(model.cfg.d_vocab, (n, length))
        corrupted = clean.clone()
        corrupted[:, 1:4] = torch.randint(model.cfg.d_vocab, (n, 3))
        with torch.no_grad():
            logits, ablated = model(clean)[:, -1], model(corrupted)[:, -1]
        change = logits - (logits.mean(dim=0) if ablation == "mean" else ablated)
        return Prompts(
            clean=clean,
            corrupted=corrupted,
            lengths=torch.full((n,), length),
            answers=change.argmax(dim=-1, keepdim=True),
            wrong_answers=change.argmin(dim=-1, keepdim=True),
            templates=("one", "two") * (n // 2),
        )

    return TaskPrompts(ranking=draw(), heldout=draw())


@pytest.mark.parametrize("method", METHODS)
def test_the_heads_of_a_circuit_written_by_hand_are_found(method):
    config = DiscoverConfig(target=0.99, granularities=("head",), method=method)
    found = discover(induction_model(), TASK, config, prompts=known_prompts()).found["head"]
    assert found.circuit.heads == HEADS


@pytest.mark.parametrize("method", METHODS)
def test_the_edges_of_a_circuit_written_by_hand_are_found(method):
    config = DiscoverConfig(target=0.99, granularities=("edge",), method=method)
    found = discover(induction_model(), TASK, config, prompts=known_prompts()).found["edge"]
    assert found.circuit.edge_names == EDGES


def test_the_attention_edges_of_a_circuit_written_by_hand_are_found():
    config = DiscoverConfig(target=0.99, granularities=("attention_edge",))
    found = discover(induction_model(), TASK, config, prompts=known_prompts())
    chosen = found.found["attention_edge"].circuit.attention_edges["induction"]
    places = {(edge.layer, edge.head, edge.query, edge.key) for edge in chosen}
    # B looks at A, the last A at B; where it no longer looks is the wrong answer.
    assert places == {(0, 0, 2, 1), (1, 0, 6, 2), (1, 0, 6, 4)}


def test_a_circuit_written_by_hand_does_nothing_without_its_last_edge():
    config = DiscoverConfig(target=0.99, granularities=("edge",))
    found = discover(induction_model(), TASK, config, prompts=known_prompts()).found["edge"]
    assert found.faithfulness == pytest.approx(1, abs=1e-4)
    assert found.faithfulness_without_last == pytest.approx(0, abs=1e-4)


def test_the_head_written_by_hand_looks_at_the_token_before():
    model, prompts = induction_model(), induction_prompts(4, 0)
    _, cache = model.run_with_cache(prompts.clean)
    before = cache["pattern", 0][:, 0].diagonal(offset=-1, dim1=1, dim2=2)
    assert (before > 0.99).all()


def test_the_distractors_of_the_model_written_by_hand_are_active():
    model, prompts = induction_model(), induction_prompts(12, 0)
    graph = Graph(2, 3, has_mlps=False)
    clean, corrupted = (
        source_outputs(model, graph, record_activations(model, graph, tokens))
        for tokens in (prompts.clean, prompts.corrupted)
    )
    change = (clean - corrupted).norm(dim=-1).mean(dim=(1, 2))
    distractors = [graph.sources.index(f"a{layer}.h{head}") for layer in (0, 1) for head in (1, 2)]
    assert (change[distractors] > 0.1).all()


@pytest.mark.parametrize(
    ("target", "ablation"), [(0.5, "corrupted"), (0.9, "corrupted"), (0.9, "mean"), (0.9, "zero")]
)
def test_every_circuit_of_a_random_model_is_faithful_and_not_without_its_last(target, ablation):
    model = make_tiny_model()
    config = DiscoverConfig(target=target, ablation=ablation)
    prompts = made_up_prompts(model, ablation=ablation)
    found = discover(model, TASK, config, prompts=prompts).found
    assert tuple(found) == GRANULARITIES
    for one in found.values():
        assert one.faithfulness >= target
        assert one.faithfulness_without_last is None or one.faithfulness_without_last < target


def test_the_faithfulness_of_a_pruned_circuit_is_what_an_intervention_measures():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities=("edge",))
    found = discover(model, TASK, config, prompts=prompts).found["edge"]
    experiment = prepare_experiment(model, prompts.heldout, metric="logit_diff")
    values = run_edges(experiment, found.circuit.edges)
    measured = float(faithfulness(values, experiment.full, experiment.empty))
    assert measured == pytest.approx(found.faithfulness, abs=1e-4)


def test_two_runs_with_one_seed_are_equal():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    config = DiscoverConfig(granularities=("mlp", "edge", "attention_edge"), seed=3)
    first, second = (discover(model, TASK, config, prompts=prompts).to_json() for _ in range(2))
    assert first == second


def test_a_saved_discovery_is_loaded_as_it_was(tmp_path):
    model = make_tiny_model()
    config = DiscoverConfig(granularities=("head", "attention_edge"))
    found = discover(model, TASK, config, prompts=made_up_prompts(model))
    found.save(tmp_path / "found.json")
    assert Discovery.load(tmp_path / "found.json").to_json() == found.to_json()


def test_progress_is_told_about_as_often_as_foreseen():
    config = DiscoverConfig(granularities=("head", "edge"))
    told = []
    discover(induction_model(), TASK, config, prompts=known_prompts(), on_step=told.append)
    assert 0.4 * steps_of(config) < len(told) < 1.3 * steps_of(config)


def test_a_model_that_cannot_do_the_task_is_refused():
    swapped = [
        replace(prompts, answers=prompts.wrong_answers, wrong_answers=prompts.answers)
        for prompts in (induction_prompts(12, 0), induction_prompts(12, 1))
    ]
    with pytest.raises(ValueError, match="the model does not do the task"):
        discover(induction_model(), TASK, prompts=TaskPrompts(*swapped))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'magic'; choose one of attribution"):
        DiscoverConfig(method="magic")


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="unknown granularity 'neuron'; choose among head"):
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
    found = discover(induction_model(), TASK, config, prompts=known_prompts()).found[granularity]
    assert found.faithfulness_of_rest == pytest.approx(0, abs=1e-3)


def test_selection_changes_the_order_in_which_components_are_taken():
    model = make_tiny_model()
    prompts = made_up_prompts(model)
    curves = set()
    for selection in ("absolute", "signed", "greedy"):
        config = DiscoverConfig(granularities=("edge",), selection=selection)
        found = discover(model, TASK, config, prompts=prompts).found["edge"]
        assert found.faithfulness >= config.target
        assert found.circuit.found["selection"] == selection
        curves.add(found.curve_faithfulness)
    assert len(curves) > 1
