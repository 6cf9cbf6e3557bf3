"""Fused gated attention against the hook points, on every kind of attention that models have."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from circuits.gate.density import record_open_edges
from circuits.gate.fused import blockwise, choose_path, fused_attention
from circuits.gate.fused.blockwise import BlockwiseAttention
from circuits.gate.gate import add_gate, gate_gradient, gates
from circuits.gate.hook_points import attention_layers
from circuits.gate.sampling import Noise
from circuits.models import bridge
from circuits.models.backend import backend_of
from circuits.models.load import copy_model, from_hf, named_weights
from circuits.sparsify.loss import cross_entropy
from circuits.sparsify.recompute import recomputed_blocks
from tests.helpers import HAS_HOOKED_TRANSFORMER, make_tiny_model, needs_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

needs_bridge_only = pytest.mark.skipif(
    HAS_HOOKED_TRANSFORMER, reason="a HookedTransformer is made of this config, or none"
)
SIZES: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    **SIZES,
}
HF_MODELS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, **SIZES),
    "llama": LlamaConfig(**LLAMA),
    "qwen3": Qwen3Config(head_dim=4, **LLAMA),
    "neox": GPTNeoXConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        **SIZES,
    ),
}
if not HAS_HOOKED_TRANSFORMER:  # It does not read these from their configs.
    HF_MODELS["olmo2"] = Olmo2Config(**LLAMA)
    HF_MODELS["falcon"] = FalconConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, alibi=False, **SIZES
    )
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
HOOKED: dict[str, dict[str, Any]] = {
    "rotary": ROTARY,
    "grouped": {"n_heads": 4, "n_key_value_heads": 2, "d_head": 4},
    "QK norm": {"use_qk_norm": True, **ROTARY},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "OLMo's norm": {"original_architecture": "Olmo2ForCausalLM"},
    "clipped": {"clip_qkv": 0.3},
    "parallel": {"parallel_attn_mlp": True},
}
UNFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ALiBi": ({"positional_embedding_type": "alibi"}, "positions are added to its scores"),
    "capped": ({"attn_scores_soft_cap": 0.5}, "its scores are capped"),
    "sinks": ({"use_attention_sinks": True}, "attention sinks"),
    "log-n": (
        {"use_logn_attn": True, "train_seq_length": 20},
        "its queries are scaled by their position",
    ),
}


def from_config(config: PretrainedConfig) -> Any:
    hf_model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return add_gate(from_hf(hf_model, None), 0.1)


BUILT: dict[str, Callable[[], Any]] = {
    **{name: lambda c=config: from_config(c) for name, config in HF_MODELS.items()},
    **{
        f"hooked, {name}": lambda o=overrides: add_gate(
            make_tiny_model(n_ctx=128, dtype=torch.float64, **o), 0.1
        )
        for name, overrides in HOOKED.items()
    },
}


@pytest.fixture(params=BUILT)
def model(request: pytest.FixtureRequest) -> Any:
    built = BUILT[request.param]()
    with torch.no_grad():  # Scores of order one, so that gates differ.
        for name, weight in named_weights(built).items():
            if name.endswith(("W_Q", "W_K")):
                weight.mul_(5)
    return built


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(2, 30, (3, 70), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of q in every fused call."""
    seen: list[torch.Size] = []
    real = BlockwiseAttention.forward

    def counted(ctx: Any, q: Tensor, *rest: Any) -> Any:
        seen.append(q.shape)
        return real(ctx, q, *rest)

    monkeypatch.setattr(BlockwiseAttention, "forward", staticmethod(counted))
    return seen


def step(model: Any, tokens: Tensor, path: str) -> list[Tensor]:
    """Logits, counts and gradients of one step of training with the gate as it is."""
    model.zero_grad()
    with fused_attention(model, path), record_open_edges(model) as edges:
        logits = model(tokens)
    loss = cross_entropy(logits, tokens) + (edges.expected / edges.allowed).square().sum()
    loss.backward()
    counted = [edges.expected.detach(), edges.open, edges.allowed]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *counted, *gradients]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


# ---- the block-wise function ---------------------------------------------------------------


def plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: float, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula, whole, with the reference's way to differentiate a sample."""
    future = torch.ones(q.shape[1], q.shape[1]).triu(1).bool()
    scores = (scale * q @ k.mT).masked_fill(future, -1e30)
    logits = scores + bias
    shifted = logits if u is None else logits + torch.logit(1 - u)
    soft = torch.sigmoid(shifted)
    gate = (shifted > 0).to(q) + soft - soft.detach()
    z = (scores.softmax(dim=-1) * gate) @ v
    return z, torch.sigmoid(logits).sum(dim=(1, 2)), (shifted > 0).sum(dim=(1, 2))


def drawn_by(seed: int, n_pairs: int, n_pos: int) -> Tensor:
    """The uniform numbers of a call, put where its blocks use them."""
    torch.manual_seed(seed)
    noise, u = Noise(torch.device("cpu")), torch.full((n_pairs, n_pos, n_pos), 0.5)
    for pairs, queries in blockwise._blocks(torch.empty(n_pairs, n_pos, 1)):
        block = u[pairs, queries, : queries.stop]
        block.copy_(noise.uniform(block.shape))
    return u.double()


@pytest.fixture(params=[(3, 9, 4), (5, 150, 8)], ids=["one block", "many blocks"])
def qkv(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    monkeypatch.setattr(blockwise, "_CPU_BLOCK", (64, 2**14))
    return [torch.randn(request.param, dtype=torch.float64).requires_grad_() for _ in "qkv"]


@pytest.mark.parametrize("sample", [False, True])
def test_blocks_give_the_numbers_and_gradients_of_the_whole(
    qkv: list[Tensor], sample: bool
) -> None:
    n_pairs, n_pos, _ = qkv[0].shape
    u = drawn_by(3, n_pairs, n_pos) if sample else None
    torch.manual_seed(3)
    found = BlockwiseAttention.apply(*qkv, 0.7, 0.2, sample, False)
    expected = plain(qkv[0], qkv[1], qkv[2], 0.7, 0.2, u)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(one))
    weight, prices = torch.randn_like(found[0]), torch.randn(n_pairs, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((z * weight).sum() + (sums * prices).sum(), qkv)
        for z, sums, _ in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


def test_a_frozen_gate_and_the_expected_edges_have_the_gradients_of_finite_differences() -> None:
    qkv = [torch.randn(2, 7, 3, dtype=torch.float64).requires_grad_() for _ in "qkv"]
    assert torch.autograd.gradcheck(
        lambda *given: BlockwiseAttention.apply(*given, 0.7, 0.2, False, True)[:2], qkv
    )


def test_half_precision_in_gives_half_precision_out() -> None:
    qkv = [torch.randn(2, 70, 8) for _ in "qkv"]
    whole = BlockwiseAttention.apply(*qkv, 0.3, 0.0, False, False)[0]
    half = BlockwiseAttention.apply(*(one.bfloat16() for one in qkv), 0.3, 0.0, False, False)[0]
    assert half.dtype == torch.bfloat16
    assert (half.float() - whole).norm() < 0.03 * whole.norm()


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.n_elements = max(self.n_elements, made.untyped_storage().nbytes() // 4)
        return made


def test_nothing_of_all_queries_and_keys_is_ever_made() -> None:
    model = add_gate(make_tiny_model(n_ctx=1024)).train()
    tokens = torch.randint(2, 30, (2, 1024))
    square = 2 * 2 * 1024 * 1024
    sizes = {}
    for path in ("hooks", "blockwise"):
        with _Largest() as largest:
            step(model, tokens, path)
        sizes[path] = largest.n_elements
    assert sizes["hooks"] >= square
    assert sizes["blockwise"] < square / 4


# ---- in a model ----------------------------------------------------------------------------


def test_a_fused_step_is_that_of_the_hook_points(
    model: Any, tokens: Tensor, calls: list[torch.Size]
) -> None:
    assert_close(step(model, tokens, "blockwise"), step(model, tokens, "hooks"))
    n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
    assert calls == [(3 * n_heads, 70, d_head)] * 2
    counts = step(model, tokens, "blockwise")[2]
    assert 0 < counts.sum() < 3 * 2 * n_heads * 70 * 71 / 2


def test_a_frozen_gate_is_frozen_when_fused(tokens: Tensor) -> None:
    model = from_config(HF_MODELS["gpt2"])
    straight = step(model, tokens, "blockwise")
    with gate_gradient(model, "frozen"):
        found, expected = step(model, tokens, "blockwise"), step(model, tokens, "hooks")
    assert_close(found, expected)
    assert any(not torch.allclose(one, other) for one, other in zip(found, straight, strict=True))


def test_a_sampled_gate_opens_as_often_when_fused(tokens: Tensor, calls: list[torch.Size]) -> None:
    model = from_config(HF_MODELS["gpt2"]).train()
    many = tokens.repeat(40, 1)
    with torch.no_grad(), fused_attention(model, "blockwise"), record_open_edges(model) as edges:
        model(many)
    assert calls
    # Each gate is drawn on its own: the variance of their number is at most p(1-p) of each.
    spread = edges.expected.sqrt()
    assert ((edges.open - edges.expected).abs() < 5 * spread).all()
    assert (edges.open != edges.expected.round()).any()


def test_recomputed_blocks_draw_the_same_gates(tokens: Tensor) -> None:
    model, grads = from_config(HF_MODELS["gpt2"]).train(), []
    for enabled in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        with fused_attention(model, "blockwise"), recomputed_blocks(model, enabled=enabled):
            cross_entropy(model(tokens), tokens).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert_close(grads[1], grads[0])


def test_under_autocast_the_matrices_are_multiplied_in_half_precision(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = from_config(HF_MODELS["gpt2"]), []
    real = BlockwiseAttention.apply
    monkeypatch.setattr(
        BlockwiseAttention, "apply", lambda q, *rest: seen.append(q.dtype) or real(q, *rest)
    )
    whole = step(model, tokens, "blockwise")[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = step(model, tokens, "blockwise")[0]
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert (half.float() - whole).norm() < 0.1 * whole.norm()


@pytest.mark.parametrize(
    "name", ["hook_q", "hook_rot_k", "hook_attn_scores", "hook_gate", "hook_pattern", "hook_z"]
)
def test_a_layer_that_is_looked_at_runs_by_its_hook_points(
    tokens: Tensor, calls: list[torch.Size], name: str
) -> None:
    model = from_config(HF_MODELS["llama"])
    expected, cache = model.run_with_cache(tokens)
    key = f"blocks.1.attn.{name}"
    with fused_attention(model, "blockwise"):
        logits, seen = model.run_with_cache(tokens, names_filter=[key])
        assert len(calls) == 1
        torch.testing.assert_close(seen[key], cache[key], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        # A change made there counts, too.
        hook = (key, lambda act, hook: torch.zeros_like(act))
        changed = model.run_with_hooks(tokens, fwd_hooks=[hook])
    torch.testing.assert_close(changed, model.run_with_hooks(tokens, fwd_hooks=[hook]))
    assert not torch.allclose(changed, logits)


def test_padding_is_masked_as_by_the_hook_points(calls: list[torch.Size]) -> None:
    model = from_config(HF_MODELS["gpt2"])
    tokens = torch.randint(2, 30, (2, 9))
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask)
        with fused_attention(model, "blockwise"):
            found = model(tokens, attention_mask=mask)
    assert not calls
    torch.testing.assert_close(found, expected)


def test_text_is_generated_alike(tokens: Tensor) -> None:
    model = from_config(HF_MODELS["gpt2"])
    options = {"max_new_tokens": 5, "do_sample": False, "verbose": False, "stop_at_eos": False}
    expected = model.generate(tokens[:1, :6], **options)
    with fused_attention(model, "blockwise"):
        found = model.generate(tokens[:1, :6], **options)
    assert torch.equal(found, expected)


def test_a_layer_of_a_class_that_is_not_known_is_left_to_the_hook_points(
    tokens: Tensor, calls: list[torch.Size], log: pytest.LogCaptureFixture
) -> None:
    model = from_config(HF_MODELS["llama"])
    attn = attention_layers(model)[1]
    attn.__class__ = type("Other", (type(attn),), {})
    reason = "Other computes its scores in a way of its own"
    with pytest.raises(ValueError, match=reason):
        choose_path(model, "blockwise", 70)
    assert choose_path(model, "auto", 70) == "blockwise"
    assert_close(step(model, tokens, "blockwise"), step(model, tokens, "hooks"))
    assert len(calls) == 1
    for attn in attention_layers(model):
        attn.__class__ = type("Other", (type(attn),), {})
    assert choose_path(model, "auto", 70) == "hooks"
    assert reason in log.text


@needs_bridge_only
def test_a_hugging_face_model_with_attention_of_its_own_is_left_to_the_hook_points(
    tokens: Tensor, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = from_config(HF_MODELS["llama"])
    monkeypatch.setattr(type(model.original_model), "_supports_attention_backend", False)
    with pytest.raises(ValueError, match="LlamaAttention does not use .* AttentionInterface"):
        choose_path(model, "blockwise", 70)
    assert_close(step(model, tokens, "blockwise"), step(model, tokens, "hooks"))
    assert not calls


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_results_of_heads_are_shown_by_the_hook_points(
    tokens: Tensor, calls: list[torch.Size], name: str
) -> None:
    model = from_config(HF_MODELS[name])
    model.set_use_attn_result(True)
    keys = [f"blocks.{layer}.attn.hook_result" for layer in (0, 1)]
    with fused_attention(model, "blockwise"):
        cache = model.run_with_cache(tokens, names_filter=keys)[1]
        assert [cache[key].shape for key in keys] == [(3, 70, model.cfg.n_heads, 16)] * 2
        model(tokens)
    assert not calls


def test_a_model_of_sliding_windows_runs_by_the_hook_points(
    tokens: Tensor, calls: list[torch.Size]
) -> None:
    model = from_config(MistralConfig(sliding_window=4, **LLAMA))
    fused, by_hooks = (step(model, tokens, path) for path in ("blockwise", "hooks"))
    assert_close(fused, by_hooks)
    assert fused[3].max() < 3 * 70 * 4
    assert not calls


@needs_hooked_transformer  # A TransformerBridge of a GPT-Neo cannot be gated.
def test_layers_with_a_window_run_by_the_hook_points(
    tokens: Tensor, calls: list[torch.Size]
) -> None:
    config = GPTNeoConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=128,
        **SIZES,
    )
    model = from_config(config)
    assert_close(step(model, tokens, "blockwise"), step(model, tokens, "hooks"))
    assert len(calls) == 1


@needs_bridge_only
def test_only_layers_with_a_window_run_by_the_hook_points(
    tokens: Tensor, calls: list[torch.Size]
) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    model = from_config(Qwen2Config(**windows, **LLAMA))
    fused, by_hooks = (step(model, tokens, path) for path in ("blockwise", "hooks"))
    assert_close(fused, by_hooks)
    assert fused[3][0, 0] > 3 * 70 * 4 > fused[3][1, 0]
    assert len(calls) == 1


def test_the_model_returns_to_what_it_was(tokens: Tensor, calls: list[torch.Size]) -> None:
    model = from_config(HF_MODELS["llama"])
    hf_config = (
        getattr(model, "original_model", model).config if backend_of(model) is bridge else None
    )

    def state() -> Any:
        return [set(attn.__dict__) for attn in attention_layers(model)], copy.deepcopy(hf_config)

    before = state()
    with pytest.raises(KeyError), fused_attention(model, "blockwise"):
        assert state() != before
        raise KeyError
    assert state() == before
    if hf_config is not None:
        assert hf_config._attn_implementation == before[1]._attn_implementation
    with torch.no_grad():
        model(tokens)
    assert not calls


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_copy_made_inside_is_not_fused(
    tokens: Tensor, calls: list[torch.Size], name: str
) -> None:
    model = from_config(HF_MODELS[name])
    with torch.no_grad(), fused_attention(model, "blockwise"):
        twin = copy_model(model)
        # A TransformerBridge cannot be pickled.
        read = pickle.loads(pickle.dumps(model)) if HAS_HOOKED_TRANSFORMER else copy_model(twin)
        expected = model(tokens)
        assert len(calls) == 2
        for weight in model.parameters():
            weight.zero_()
        for other in (twin, read):
            torch.testing.assert_close(other(tokens), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2


# ---- the choice ----------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="circuits"):
        yield caplog


def test_on_a_cpu_attention_is_fused_in_blocks_without_a_word(
    log: pytest.LogCaptureFixture,
) -> None:
    model = add_gate(make_tiny_model())
    assert choose_path(model, "auto", 32) == "blockwise"
    assert choose_path(model, "hooks", 32) == "hooks"
    assert not log.records


@needs_hooked_transformer
@pytest.mark.parametrize("kind", UNFUSED)
def test_attention_that_is_more_than_a_softmax_is_left_to_the_hook_points(
    kind: str, log: pytest.LogCaptureFixture, tokens: Tensor
) -> None:
    overrides, reason = UNFUSED[kind]
    model = add_gate(make_tiny_model(n_ctx=128, **overrides))
    assert choose_path(model, "auto", 32) == "hooks"
    assert reason in log.text
    with pytest.raises(ValueError, match=f"'blockwise' does not work for this model: .*{reason}"):
        choose_path(model, "blockwise", 32)
    # Asked for all the same, no number changes.
    assert_close(step(model, tokens, "blockwise"), step(model, tokens, "hooks"))


@needs_hooked_transformer
def test_packed_weights_are_left_to_the_hook_points(log: pytest.LogCaptureFixture) -> None:
    model = add_gate(make_tiny_model())
    model.cfg.load_in_4bit = True
    assert choose_path(model, "auto", 32) == "hooks"
    assert "its weights are packed in 4 bits" in log.text


@needs_bridge_only
def test_capped_scores_of_a_bridge_are_left_to_the_hook_points(
    log: pytest.LogCaptureFixture,
) -> None:
    model = from_config(Gemma2Config(head_dim=4, query_pre_attn_scalar=4, **LLAMA))
    assert choose_path(model, "auto", 32) == "hooks"
    assert "its scores are capped" in log.text


def test_triton_on_a_cpu_is_refused_if_asked_for() -> None:
    with pytest.raises(ValueError, match="'triton' does not work here: it needs a CUDA device"):
        choose_path(add_gate(make_tiny_model()), "triton", 32)


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown attention 'flash'; choose one of auto, hooks"):
        choose_path(add_gate(make_tiny_model()), "flash", 32)


def test_a_dense_model_has_nothing_to_fuse() -> None:
    with (
        pytest.raises(ValueError, match="no attention gate"),
        fused_attention(make_tiny_model(), "blockwise"),
    ):
        pass


def test_the_gates_stay_in_place() -> None:
    model = add_gate(make_tiny_model())
    before = gates(model)
    with fused_attention(model, "blockwise"):
        assert gates(model) == before
