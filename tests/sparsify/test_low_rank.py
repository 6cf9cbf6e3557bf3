from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

from circuits.gate.gate import add_gate
from circuits.models.load import load_model, named_weights
from circuits.models.save_adapter import save_adapter
from circuits.models.saving import save_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.low_rank import add_low_rank, merge_low_rank
from circuits.sparsify.train import post_train
from tests.helpers import make_tiny_model, needs_hooked_transformer

TOKENS = torch.randint(0, 10, (3, 8), generator=torch.Generator().manual_seed(0))
GROUPED = {"n_key_value_heads": 1, "n_heads": 2, "gated_mlp": True}


def as_hugging_face_has_it(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight as one matrix for all heads, written down a second time."""
    if weight.ndim <= 2:
        return weight
    heads = weight.unbind(0)
    return torch.cat(heads, dim=0 if name.endswith("W_O") else 1)


@pytest.fixture(params=[{}, GROUPED], ids=["GPT-2", "grouped queries, gated MLP"])
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    return make_tiny_model(**request.param)


def test_the_update_is_nothing_at_first_and_of_the_given_rank_after_merging(
    model: HookedTransformer,
) -> None:
    before = {name: weight.detach().clone() for name, weight in named_weights(model).items()}
    expected = model(TOKENS)
    trained = add_low_rank(model, 3, alpha=6.0)
    assert torch.equal(model(TOKENS), expected)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_()
    moved = model(TOKENS)
    assert not torch.allclose(moved, expected)
    merge_low_rank(model)
    assert torch.allclose(model(TOKENS), moved, atol=1e-5)
    after = named_weights(model)
    assert after.keys() == before.keys()
    for name, weight in before.items():
        change = as_hugging_face_has_it(name, after[name].detach() - weight)
        if "attn.W_" in name or "attn._W_" in name or "mlp.W_" in name:
            values = torch.linalg.svdvals(change)
            assert (values[:3] > 1e-3).all()
            assert (values[3:] < 1e-4).all(), name
        else:
            assert not change.any(), name


@needs_hooked_transformer
def test_the_gradient_is_that_of_the_whole_weight_through_the_update() -> None:
    model = make_tiny_model()
    whole = copy.deepcopy(model)
    trained = add_low_rank(model, 2, alpha=8.0, targets="attention")
    (model(TOKENS) ** 2).mean().backward()
    (whole(TOKENS) ** 2).mean().backward()
    # up is 0, so its gradient is scale * down^T @ dW, and that of down is 0.
    name = "blocks.1.attn.parametrizations.W_O.0."
    down, up = trained[name + "down"], trained[name + "up"]
    gradient = whole.blocks[1].attn.W_O.grad
    assert gradient is not None and up.grad is not None and down.grad is not None
    torch.testing.assert_close(up.grad, 4.0 * down.T @ gradient.flatten(0, 1))
    assert not down.grad.any()


@pytest.mark.parametrize(("targets", "count"), [("attention", 4), ("mlp", 2), ("all", 6)])
def test_targets_choose_the_weights(targets: str, count: int) -> None:
    assert len(add_low_rank(make_tiny_model(), 2, targets=targets)) == 2 * 2 * count


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        add_low_rank(make_tiny_model(), 0)
    with pytest.raises(ValueError, match="no weights of the kind 'mlp'"):
        add_low_rank(make_tiny_model(attn_only=True), 2, targets="mlp")
    with pytest.raises(ValueError, match="lora_rank is -1; it must be a whole number >= 0"):
        TrainConfig(lora_rank=-1)
    with pytest.raises(ValueError, match="lora_targets is 'heads'; it must be one of"):
        TrainConfig(lora_targets="heads")


def train(out: Path, steps: int = 6, resume: bool = False, **changes: object):
    config = TrainConfig(
        steps=steps, batch_size=2, lora_rank=2, learning_rate=1e-2, evaluate_every=3,
        control_every=2, control_sequences=2, selection_sequences=2, checkpoint_every=2,
        slack=10.0, **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    dense = load_model("dense")
    stream = CorpusStream(dense.tokenizer, context=16)
    return dense, post_train(dense, stream, config, out, resume=resume, progress=False)


@pytest.mark.newest
def test_a_run_trains_updates_only_and_its_model_is_an_ordinary_one(tmp_path: Path) -> None:
    dense, result = train(tmp_path / "run")
    before, after = named_weights(dense), named_weights(result.model)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(
        name.split(".")[-1] in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out") for name in changed
    )
    save_model(result.model, tmp_path / "model", gate=result.card())
    again = load_model(tmp_path / "model")
    tokens = TOKENS + 5
    assert torch.allclose(again(tokens), result.model(tokens), atol=1e-4)
    save_adapter(dense, result.updates, tmp_path / "adapter", gate=result.card())
    adapted = load_model(tmp_path / "adapter")
    assert torch.allclose(adapted(tokens), result.model(tokens), atol=1e-4)
    assert len(result.updates) == len(changed)
    saved = max((tmp_path / "run" / "checkpoints").glob("step_*/*.safetensors"))
    assert saved.stat().st_size < 1.2e6  # the whole model has 5 MB


def test_a_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    _, straight = train(tmp_path / "straight")
    train(tmp_path / "two")
    for folder in (tmp_path / "two" / "checkpoints").glob("step_6*"):
        for path in folder.iterdir():
            path.unlink()
    _, resumed = train(tmp_path / "two", resume=True)
    for (name, one), other in zip(
        straight.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_gated_model_can_be_updated(model: HookedTransformer) -> None:
    add_low_rank(add_gate(model), 1)
    assert torch.isfinite(model(TOKENS)).all()
