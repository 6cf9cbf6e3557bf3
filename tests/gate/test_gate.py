"""The attention gate against its three-line formula, and in every use of a hooked model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from circuits.models.backend import Hooks
from tests.helpers import query_gradient, query_weight

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from circuits.gate.density import Density, measure_density, record_open_edges
from circuits.gate.gate import add_gate, gate_bias, gate_gradient, gates, is_gated, remove_gate
from circuits.gate.sampling import Noise, OpenGates
from circuits.models.load import copy_model
from tests.helpers import make_tiny_model, needs_hooked_transformer, word_tokenizer

SCORES, GATE, PATTERN = (
    f"blocks.1.attn.hook_{name}" for name in ("attn_scores", "gate", "pattern")
)


@pytest.fixture
def gated(tiny_model: HookedTransformer) -> HookedTransformer:
    return spread_scores(add_gate(tiny_model, bias=0.1))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(2, 30, (3, 9), generator=torch.Generator().manual_seed(1))


def spread_scores(model: HookedTransformer) -> HookedTransformer:
    """Scales queries up, so that scores are of order one and no gate is near its threshold."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.mul_(30)
    return model


def causal_scores(dtype: torch.dtype = torch.float64) -> Tensor:
    scores = 2 * torch.randn(3, 2, 5, 5, dtype=dtype)
    return scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")).requires_grad_()


def reference_sample(g: Tensor, u: Tensor) -> Tensor:
    """The published formula: a hard sample whose gradient is that of the soft one."""
    soft = torch.sigmoid(g + torch.logit(1 - u))
    return (soft > 0.5).to(g) + soft - soft.detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sampled_gate_and_its_gradient_are_those_of_the_reference(dtype: torch.dtype) -> None:
    g, weight = causal_scores(dtype), torch.randn(3, 2, 5, 5, dtype=dtype)
    torch.manual_seed(5)
    u = Noise(g.device).uniform(g.shape).to(dtype)
    torch.manual_seed(5)
    gate, _, _ = OpenGates.apply(g, True, False)
    finite = torch.where(g.isinf(), -80.0, g).detach().requires_grad_()  # as good as shut
    expected = reference_sample(finite, u)
    torch.testing.assert_close(gate, expected)
    ours, theirs = (
        torch.autograd.grad((a * weight).sum(), x)[0] for a, x in ((gate, g), (expected, finite))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)  # u is a float32 number


def test_the_deterministic_gate_has_the_gradient_of_a_sigmoid() -> None:
    g, weight = causal_scores(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    gate, _, _ = OpenGates.apply(g, False, False)
    assert torch.equal(gate, (g > 0).to(g))
    (ours,) = torch.autograd.grad((gate * weight).sum(), g, retain_graph=True)
    (theirs,) = torch.autograd.grad((torch.sigmoid(g) * weight).sum(), g)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_expected_open_edges_and_their_gradient_are_those_of_the_sigmoid(
    sample: bool, frozen: bool
) -> None:
    g, weight = causal_scores(), torch.randn(2, dtype=torch.float64)
    gate, expected, _ = OpenGates.apply(g, sample, frozen)
    plain = torch.sigmoid(g).sum(dim=(0, 2, 3))
    torch.testing.assert_close(expected, plain)
    (ours,) = torch.autograd.grad((expected * weight).sum(), g, retain_graph=True)
    (theirs,) = torch.autograd.grad((plain * weight).sum(), g)
    torch.testing.assert_close(ours, theirs)
    if not frozen:
        (both,) = torch.autograd.grad((expected * weight).sum() + gate.sum(), g, retain_graph=True)
        (alone,) = torch.autograd.grad(gate.sum(), g)
        torch.testing.assert_close(both, ours + alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [float("-inf"), -3.38e38])
@pytest.mark.parametrize("sample", [True, False])
def test_masked_pairs_are_shut_uncounted_and_without_gradient(
    dtype: torch.dtype, masked: float, sample: bool
) -> None:
    mask = torch.ones(6, 6).triu(1).bool()
    g = torch.zeros(2, 3, 6, 6, dtype=dtype).masked_fill(mask, masked).requires_grad_()
    gate, expected, counts = OpenGates.apply(g, sample, False)
    (gate.sum() + expected.sum()).backward()
    assert gate.dtype == dtype
    assert gate.unique().tolist() in ([0.0], [0.0, 1.0])
    assert not gate[..., mask].any()
    assert g.grad is not None
    assert g.grad.isfinite().all()
    assert not g.grad[..., mask].any()
    assert counts[1].tolist() == [2 * 21] * 3
    torch.testing.assert_close(counts[0].to(gate), gate.sum(dim=(0, 2, 3)))
    torch.testing.assert_close(expected.float(), torch.full((3,), 0.5 * 2 * 21))


def test_extreme_logits_give_finite_gradients() -> None:
    g = torch.tensor([-1e4, -104.0, -50.0, 20.0, 1e4]).repeat(1, 1, 5, 1).requires_grad_()
    for sample in (True, False):
        gate, expected, _ = OpenGates.apply(g, sample, False)
        (grad,) = torch.autograd.grad(gate.sum() + expected.sum(), g)
        assert gate[0, 0, 0].tolist() == [0, 0, 0, 1, 1]
        assert grad.isfinite().all()


@pytest.mark.parametrize("logit", [-4.0, -1.0, 0.0, 2.0])
def test_gates_open_as_often_as_their_probability_says(logit: float) -> None:
    n = 2**20
    gate, _, _ = OpenGates.apply(torch.full((64, 1, 128, 128), logit), True, False)
    p = torch.tensor(logit).sigmoid().item()
    assert gate.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5)


def test_noise_is_uniform_strictly_between_zero_and_one() -> None:
    u = Noise(torch.device("cpu")).uniform(torch.Size((2**20,))).double()
    assert u.min() > 0
    assert u.max() < 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by chance once in a thousand.
    steps = torch.arange(1, 2**20 + 1).double() / 2**20
    assert (u.sort().values - steps).abs().max() < 1.95 / 2**10
    neighbours = torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1]
    assert neighbours.abs() < 5 / 2**10


def test_noise_follows_the_state_of_torchs_generator() -> None:
    shape, device = torch.Size((7,)), torch.device("cpu")
    state = torch.get_rng_state()
    first, second = Noise(device).uniform(shape), Noise(device).uniform(shape)
    torch.set_rng_state(state)
    assert torch.equal(Noise(device).uniform(shape), first)
    assert not torch.equal(first, second)


def test_the_cached_gate_and_pattern_are_those_of_the_formula(
    gated: HookedTransformer, tokens: Tensor
) -> None:
    _, cache = gated.run_with_cache(tokens)
    gate = (cache[SCORES] + 0.1 > 0).float()
    assert torch.equal(cache[GATE], gate)
    torch.testing.assert_close(cache[PATTERN], gate * cache[SCORES].softmax(dim=-1))
    z = torch.einsum("bhqk,bkhd->bqhd", cache[PATTERN], cache["blocks.1.attn.hook_v"])
    torch.testing.assert_close(cache["blocks.1.attn.hook_z"], z)
    assert 0 < gate.sum() < 3 * 2 * 45


def test_an_open_gate_is_the_dense_model(tiny_model: HookedTransformer, tokens: Tensor) -> None:
    dense = tiny_model(tokens)
    add_gate(tiny_model, bias=1e6)
    torch.testing.assert_close(tiny_model(tokens), dense)
    assert measure_density(tiny_model, tokens).overall == 1


def test_a_removed_gate_leaves_the_dense_model(
    tiny_model: HookedTransformer, tokens: Tensor
) -> None:
    dense, hooks = tiny_model(tokens), list(tiny_model.hook_dict)
    assert gate_bias(add_gate(tiny_model, bias=-0.5)) == -0.5
    assert set(tiny_model.hook_dict) - set(hooks) == {g.name for g in gates(tiny_model)}
    assert is_gated(tiny_model)
    remove_gate(tiny_model)
    assert not is_gated(tiny_model)
    assert set(hooks) <= set(tiny_model.hook_dict)
    assert not any("hook_gate" in name for name in tiny_model.hook_dict)
    assert torch.equal(tiny_model(tokens), dense)


def test_the_gate_adds_nothing_to_the_state_dict_and_keeps_the_mode(
    tiny_model: HookedTransformer,
) -> None:
    names = list(tiny_model.state_dict())
    add_gate(tiny_model)
    assert list(tiny_model.state_dict()) == names
    assert not any(module.training for module in tiny_model.modules())
    assert all(module.training for module in tiny_model.train().modules())


def test_a_gated_model_survives_reset_hooks(gated: HookedTransformer, tokens: Tensor) -> None:
    before = gated(tokens)
    gated.add_perma_hook(GATE, lambda tensor, hook: torch.ones_like(tensor))
    gated.reset_hooks(including_permanent=True)
    assert torch.equal(gated(tokens), before)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        copy_model,
        pytest.param(lambda m: pickle.loads(pickle.dumps(m)), marks=needs_hooked_transformer),
    ],
    ids=["deepcopy", "copy_model", "pickle"],
)
def test_a_copy_has_a_gate_of_its_own(
    gated: HookedTransformer,
    tokens: Tensor,
    copied: Callable[[HookedTransformer], HookedTransformer],
) -> None:
    with torch.no_grad():  # A TransformerBridge that keeps a graph cannot be copied.
        before = gated(tokens)
    twin = copied(gated)
    assert torch.equal(twin(tokens), before)
    twin.train()
    for gate in gates(twin):
        gate.bias = 1e6
    assert torch.equal(gated(tokens), before)
    assert not gates(gated)[0].training
    assert measure_density(twin, tokens).overall == 1


@torch.no_grad()
def test_a_model_can_be_copied_in_the_middle_of_a_run(
    gated: HookedTransformer, tokens: Tensor
) -> None:
    copies: list[HookedTransformer] = []

    def copy_model(_: Tensor, hook: Any) -> None:
        del hook
        copies.append(copy.deepcopy(gated))

    logits = gated(tokens)
    with record_open_edges(gated) as edges:
        gated.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", copy_model)])
        copies[0].reset_hooks()
        assert torch.equal(copies[0](tokens), logits)
    assert edges.allowed[0, 0] == 3 * 45


def test_the_remembered_scores_are_dropped(gated: HookedTransformer, tokens: Tensor) -> None:
    gated(tokens)
    attention: Any = gated.blocks[0].attn
    with pytest.raises(RuntimeError, match="saw no scores"):
        attention.hook_attn_scores.take()


def test_an_edit_of_the_scores_reaches_the_gate(gated: HookedTransformer, tokens: Tensor) -> None:
    seen = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda value, hook: seen.update({name: value})

    hooks = [
        (SCORES, lambda scores, hook: torch.where(scores.isinf(), scores, -1.0)),
        (GATE, keep("gate")),
        (PATTERN, keep("pattern")),
    ]
    gated.run_with_hooks(tokens, fwd_hooks=hooks)
    assert not seen["gate"].any()
    assert not seen["pattern"].any()


def test_a_patched_gate_reaches_the_pattern(gated: HookedTransformer, tokens: Tensor) -> None:
    hooks: Hooks = [(g.name, lambda gate, hook: torch.ones_like(gate)) for g in gates(gated)]
    patched = gated.run_with_hooks(tokens, fwd_hooks=hooks)
    torch.testing.assert_close(patched, remove_gate(gated)(tokens))


def test_the_whole_model_has_the_straight_through_gradient(
    gated: HookedTransformer, tokens: Tensor
) -> None:
    gated(tokens).square().mean().backward()
    ours = query_weight(gated, 1).grad
    gated.zero_grad()

    def soft_backward(pattern: Tensor, hook: Any) -> Tensor:
        del hook
        soft = torch.sigmoid(scores[0] + 0.1)
        return pattern * ((soft > 0.5).to(soft) + soft - soft.detach())

    scores: list[Tensor] = []
    dense = remove_gate(copy_model(gated))
    hooks = []
    for layer in range(2):
        name = f"blocks.{layer}.attn.hook_"
        hooks.append((f"{name}attn_scores", lambda s, hook: scores.__setitem__(slice(None), [s])))
        hooks.append((f"{name}pattern", soft_backward))
    dense.run_with_hooks(tokens, fwd_hooks=hooks).square().mean().backward()
    theirs = query_weight(dense, 1).grad
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_a_frozen_gate_is_a_constant_and_thaws_after_an_exception(
    gated: HookedTransformer, tokens: Tensor
) -> None:
    def gradient() -> Tensor:
        gated.zero_grad()
        gated(tokens).square().mean().backward()
        return query_gradient(gated, 1).clone()

    straight, frozen = gradient(), torch.empty(0)
    with pytest.raises(KeyError), gate_gradient(gated, "frozen"):
        frozen = gradient()
        raise KeyError
    assert not torch.allclose(frozen, straight)
    assert torch.equal(gradient(), straight)
    _, cache = gated.run_with_cache(tokens)
    constant = {g.name: cache[g.name] for g in gates(gated)}
    gated.zero_grad()
    hooks: Hooks = [(name, lambda _, hook: constant[hook.name]) for name in constant]
    gated.run_with_hooks(tokens, fwd_hooks=hooks).square().mean().backward()
    torch.testing.assert_close(frozen, query_gradient(gated, 1))


def test_training_mode_samples_and_evaluation_mode_does_not(
    gated: HookedTransformer, tokens: Tensor
) -> None:
    assert torch.equal(gated(tokens), gated(tokens))
    gated.train()
    assert not torch.equal(gated(tokens), gated(tokens))


VARIANTS = {
    "learned positions": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 8},
    "grouped queries": {"n_heads": 4, "d_head": 4, "n_key_value_heads": 2},
    "no MLP": {"attn_only": True},
}


def variant(name: str) -> HookedTransformer:
    model = make_tiny_model(tokenizer=word_tokenizer("abcdefghijklmnop"), **VARIANTS[name])
    return spread_scores(add_gate(model))


@pytest.mark.parametrize("name", VARIANTS)
def test_generation_does_not_depend_on_the_kv_cache(name: str) -> None:
    model: Any = variant(name)
    prompt = torch.tensor([[0, 4, 7, 5, 4]])
    with_cache, without = (
        model.generate(
            prompt,
            max_new_tokens=12,
            do_sample=False,
            use_past_kv_cache=cached,
            stop_at_eos=False,
            verbose=False,
        )
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert with_cache.shape == (1, 17)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    model = variant(name)
    prompt, padding = torch.tensor([[0, 4, 7, 5, 4]]), torch.full((1, 3), 1)
    parts = (padding, prompt) if side == "left" else (prompt, padding)
    padded, mask = torch.cat(parts, dim=1), (torch.cat(parts, dim=1) != 1).long()
    own = slice(3, 8) if side == "left" else slice(0, 5)
    alone = model(prompt)
    together = model(padded, attention_mask=mask, padding_side=side)
    torch.testing.assert_close(together[:, own], alone)
    counted, plain = measure_density(model, padded, mask), measure_density(model, prompt)
    torch.testing.assert_close(counted.per_head, plain.per_head)
    assert counted.allowed is not None
    assert counted.allowed.unique().tolist() == [15]


def test_a_transformer_bridge_takes_the_gate_under_the_same_names(
    tmp_path: Path, tokens: Tensor
) -> None:
    config = GPT2Config(
        vocab_size=30, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    word_tokenizer(f"w{i}" for i in range(28)).save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    dense = bridge(tokens)
    add_gate(bridge, 0.1)
    logits, cache = bridge.run_with_cache(tokens)
    assert torch.equal(cache[GATE], (cache[SCORES] + 0.1 > 0).float())
    torch.testing.assert_close(cache[PATTERN], cache[GATE] * cache[SCORES].softmax(dim=-1))
    bridge.reset_hooks()
    assert torch.equal(bridge(tokens), logits)
    assert measure_density(bridge, tokens).overall < 1
    assert torch.equal(remove_gate(bridge)(tokens), dense)


def test_a_left_padded_batch_has_finite_gradients() -> None:
    model = variant("learned positions").train()
    padded = torch.tensor([[1, 1, 0, 4, 7], [0, 4, 7, 5, 4]])
    with record_open_edges(model) as edges:
        logits = model(padded, attention_mask=(padded != 1).long(), padding_side="left")
    (logits[:, -1].sum() + edges.expected.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_runs_trains_and_counts(gated: HookedTransformer, tokens: Tensor) -> None:
    gated.to(torch.bfloat16)
    _, cache = gated.run_with_cache(tokens)
    assert cache[GATE].dtype == torch.bfloat16
    assert torch.equal(cache[GATE], (cache[SCORES] + 0.1 > 0).to(torch.bfloat16))
    gated.train()
    with record_open_edges(gated) as edges:
        logits = gated(tokens)
    assert edges.expected.dtype == torch.float32
    (logits.float().mean() + edges.expected.mean()).backward()
    assert query_gradient(gated, 0).isfinite().all()


def test_density_is_open_over_allowed_edges(gated: HookedTransformer, tokens: Tensor) -> None:
    _, cache = gated.run_with_cache(tokens)
    per_head = torch.stack(
        [cache[f"blocks.{layer}.attn.hook_gate"].sum(dim=(0, 2, 3)) / (3 * 45) for layer in (0, 1)]
    )
    gated.train()
    density = measure_density(gated, tokens, batch_size=2)
    assert gated.training
    torch.testing.assert_close(density.per_head, per_head)
    torch.testing.assert_close(density.per_layer, per_head.mean(dim=1))
    assert density.overall == pytest.approx(per_head.mean().item())
    assert density.context == 9


def test_density_weighs_heads_by_their_allowed_edges() -> None:
    per_head = torch.tensor([[0.5, 0.1]])
    assert Density(per_head, 4).overall == pytest.approx(0.3)
    # 15 of 30 and 1 of 10 edges are open: 16 of 40.
    assert Density(per_head, 4, torch.tensor([[30, 10]])).overall == pytest.approx(0.4)


def test_the_recorder_adds_up_passes_and_stops_after_an_exception(
    gated: HookedTransformer, tokens: Tensor
) -> None:
    gated.train()
    with pytest.raises(KeyError), record_open_edges(gated) as edges:
        gated(tokens)
        gated(tokens)
        raise KeyError
    gated(tokens)
    assert edges.allowed.tolist() == [[270, 270], [270, 270]]
    assert (edges.open > 0).all()
    assert edges.expected.requires_grad


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: add_gate(add_gate(m)), "gated already"),
        (lambda m: add_gate(m, bias=float("nan")), "bias is nan; it must be a finite"),
        (gates, "no attention gate; put one on"),
        (remove_gate, "no attention gate"),
        (lambda m: gate_gradient(add_gate(m), "none").__enter__(), "'none' is not"),
        (
            lambda _: add_gate(torch.nn.Linear(1, 1)),
            "Linear is neither a HookedTransf",
        ),
    ],
    ids=["twice", "bias", "gates", "remove", "gradient", "linear"],
)
def test_bad_input_is_refused(
    tiny_model: HookedTransformer, act: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        act(tiny_model)


def test_hooks_that_would_be_lost_are_refused(tiny_model: HookedTransformer) -> None:
    tiny_model.add_hook(PATTERN, lambda tensor, hook: tensor)
    with pytest.raises(ValueError, match="blocks.1.attn.hook_pattern would be lost; take them off"):
        add_gate(tiny_model)
    assert not is_gated(tiny_model)


def test_nested_recorders_are_refused(gated: HookedTransformer) -> None:
    with (
        record_open_edges(gated),
        pytest.raises(ValueError, match="being recorded already"),
        record_open_edges(gated),
    ):
        pass


def test_blocks_without_attention_are_named(tiny_model: HookedTransformer) -> None:
    del tiny_model.blocks[1].attn
    with pytest.raises(ValueError, match=r"blocks \[1\] of the model have no attention"):
        add_gate(tiny_model)
