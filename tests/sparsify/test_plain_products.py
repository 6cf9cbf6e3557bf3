"""Products with weights as they lie: the referees are the sum with the update, and the class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.gate.fused import fused_attention
from circuits.gate.fused.forwards import layer_refuses
from circuits.gate.gate import add_gate
from circuits.gate.hook_points import attention_layers
from circuits.models.load import load_bridge
from circuits.sparsify.low_rank import LowRank, add_low_rank
from circuits.sparsify.plain_products import plain_products
from tests.helpers import make_tiny_model, needs_hooked_transformer
from tests.models.test_models import hf_folder

pytestmark = pytest.mark.newest

TOKENS = torch.tensor([[0, 5, 9, 3, 22, 7, 2, 14], [0, 1, 1, 28, 6, 6, 19, 4]])


@pytest.fixture
def bridge(tmp_path: Path) -> Callable[[str], Any]:
    return lambda kind: load_bridge(hf_folder(tmp_path / kind, kind))


MODELS: dict[str, Callable[[Any], Any]] = {
    "GPT-2": lambda _: make_tiny_model(),
    "grouped queries, gated MLP": lambda _: make_tiny_model(
        n_key_value_heads=1, gated_mlp=True, act_fn="silu", positional_embedding_type="rotary",
        rotary_dim=8,
    ),
    "solu with its norm": lambda _: make_tiny_model(act_fn="solu_ln"),
    "no MLPs": lambda _: make_tiny_model(attn_only=True),
    "bridge of GPT-2": lambda bridge: bridge("gpt2"),
    "bridge of Llama": lambda bridge: bridge("llama"),
    "bridge of NeoX": lambda bridge: bridge("neox"),
}  # fmt: skip


def with_updates(model: Any, **options: Any) -> dict[str, torch.nn.Parameter]:
    trained = add_low_rank(model, 3, alpha=5.0, **options)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(std=0.3).requires_grad_(True)
    return trained


def passes(model: Any, path: str, *, apart: bool) -> list[torch.Tensor]:
    """The logits and all gradients, one way or the other."""
    model.zero_grad()
    with fused_attention(model, path), plain_products(model) if apart else nullcontext():
        logits = model(TOKENS)
        logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("path", ["hooks", "blockwise"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_the_sum(
    name: str, path: str, bridge: Callable[[str], Any]
) -> None:
    model = MODELS[name](bridge)
    trained = with_updates(model)
    add_gate(model).eval()  # sampled gates would turn rounding into other gates
    together, apart = (passes(model, path, apart=one) for one in (False, True))
    assert len(apart) == 1 + len(trained)
    for one, other in zip(together, apart, strict=True):
        assert other.any()
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["GPT-2", "grouped queries, gated MLP", "bridge of Llama"])
def test_the_sum_is_made_nowhere(
    name: str, bridge: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name](bridge)
    with_updates(model)
    add_gate(model)

    def forbidden(*_: Any) -> None:
        raise AssertionError("a weight with its update added was asked for")

    monkeypatch.setattr(LowRank, "forward", forbidden)
    with fused_attention(model, "blockwise"), plain_products(model):
        assert torch.isfinite(model(TOKENS)).all()
    with pytest.raises(AssertionError, match="was asked for"):
        model(TOKENS)


@needs_hooked_transformer
def test_updates_do_not_send_attention_back_to_its_hook_points() -> None:
    model = add_gate(make_tiny_model())
    add_low_rank(model, 2)
    assert [layer_refuses(model, attn) for attn in attention_layers(model)] == [None, None]


@needs_hooked_transformer
@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_weights_without_an_update_are_used_as_they_are(targets: str) -> None:
    model = make_tiny_model()
    with_updates(model, targets=targets)
    add_gate(model)
    together, apart = (passes(model, "blockwise", apart=one) for one in (False, True))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


@needs_hooked_transformer
@pytest.mark.parametrize("name", ["GPT-2", "grouped queries, gated MLP", "solu with its norm"])
def test_frozen_weights_are_not_copied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name](None)
    with torch.no_grad():
        expected = model(TOKENS)
    copied: list[tuple[int, ...]] = []
    real = torch.Tensor.contiguous

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not tensor.is_contiguous():
            copied.append(tuple(tensor.shape))
        return real(tensor, *args, **kwargs)

    cfg = model.cfg
    weights = {(cfg.d_vocab, cfg.d_model), (cfg.d_mlp, cfg.d_model), (cfg.d_model, cfg.d_mlp)}
    with torch.no_grad(), plain_products(model):
        monkeypatch.setattr(torch.Tensor, "contiguous", counted)
        found = model(TOKENS)
        assert not weights & set(copied)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model(TOKENS)
    assert (cfg.d_vocab, cfg.d_model) in copied


@needs_hooked_transformer
def test_hooks_inside_a_module_run() -> None:
    model = make_tiny_model()
    with_updates(model)
    with torch.no_grad(), plain_products(model):
        _, cache = model.run_with_cache(TOKENS)
        changed = model.run_with_hooks(
            TOKENS, fwd_hooks=[("blocks.1.mlp.hook_post", lambda act, hook: act * 0)]
        )
        plain = model(TOKENS)
    assert {"blocks.0.mlp.hook_post", "unembed.hook_out"} <= set(cache)
    assert not torch.allclose(changed, plain)


def test_models_leave_as_they_came_in() -> None:
    model = make_tiny_model()
    with_updates(model)
    with torch.no_grad():
        before = model(TOKENS)
        with pytest.raises(RuntimeError, match="stop"), plain_products(model):
            raise RuntimeError("stop")
        assert not any("forward" in vars(module) for module in model.modules())
        torch.testing.assert_close(model(TOKENS), before)


@needs_hooked_transformer  # no copy of a TransformerBridge with updates runs, wherever made
def test_a_copy_made_inside_computes_the_same() -> None:
    model = make_tiny_model()
    with_updates(model)
    with torch.no_grad():
        with plain_products(model):
            copied = copy.deepcopy(model)
        torch.testing.assert_close(copied(TOKENS), model(TOKENS))
