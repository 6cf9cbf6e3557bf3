"""A start by layers: F against divergences, the loss against a loop, kills, and bad input."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.gate.gate import add_gate, gates
from circuits.models.backend import backend_of
from circuits.models.load import copy_model
from circuits.sparsify import layer_start as module
from circuits.sparsify.layer_start import LayerStart, LayerText, fisher_information
from circuits.sparsify.train import TrainConfig, TrainingInterrupted, TrainResult, post_train
from circuits.sparsify.trained_weights import choose_trained
from tests.helpers import (
    CountingStream,
    make_taught_model,
    make_tiny_model,
    needs_hooked_transformer,
)

STREAM = CountingStream()
CONFIG: dict[str, Any] = {
    "steps": 4,
    "batch_size": 4,
    "bound": "kl",
    "epsilon": 1.0,
    "lora_rank": 4,
    "layer_steps": 6,
    "layer_sequences": 10,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "control_sequences": 4,
    "selection_sequences": 8,
}


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(CONFIG | changes))


def taught() -> Any:
    return make_taught_model(STREAM)


def run(out: Path, *, resume: bool = False, **changes: Any) -> TrainResult:
    config = make_config(**changes)
    return post_train(taught(), STREAM, config, out, frozen=(), resume=resume, progress=False)


def same_weights(one: TrainResult, other: TrainResult) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def parts_of(model: Any, layer: int, tokens: Tensor) -> dict[str, Tensor]:
    names = [f"blocks.{layer}.{name}" for name in ("hook_resid_pre", "hook_attn_out")]
    names.append(f"blocks.{layer}.hook_resid_post")
    _, cache = model.run_with_cache(tokens, names_filter=names)
    return {name.rpartition(".")[2]: cache[name] for name in names}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"normalization_type": None},
        {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 8},
        {
            "normalization_type": "RMS",
            "use_normalization_before_and_after": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": 8,
            "n_key_value_heads": 1,
        },
    ],
    ids=["gpt2", "no norms", "parallel", "two norms"],
)
def test_attention_and_layers_run_by_themselves(overrides: dict[str, Any]) -> None:
    model, tokens = make_tiny_model(**overrides), STREAM.batch(0, 3)
    for layer in range(2):
        with torch.no_grad():
            parts = parts_of(model, layer, tokens)
            read, backend = parts["hook_resid_pre"], backend_of(model)
            written = backend.run_attention(model, tokens, layer, read)
            after = backend.run_layer(model, tokens, layer, read)
            other = backend.run_attention(model, tokens, layer, read.flip(-1))
        torch.testing.assert_close(written, parts["hook_attn_out"])
        torch.testing.assert_close(after, parts["hook_resid_post"])
        assert not torch.allclose(other, written)


@pytest.mark.parametrize("frozen", [False, True])
def test_fisher_information_tells_the_divergence_of_a_small_error(frozen: bool) -> None:
    model, tokens = taught(), STREAM.batch(0, 2)[:, :5]
    model.requires_grad_(not frozen)
    fisher = fisher_information(model, tokens.repeat(600, 1), at_once=300)
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = model(tokens).log_softmax(-1)
        for layer in range(2):
            parts = parts_of(model, layer, tokens)
            stream = parts["hook_resid_pre"] + parts["hook_attn_out"]
            size = 0.02 * stream.square().mean(-1, keepdim=True).sqrt()
            total = 0.0
            for place in range(tokens.shape[1]):

                def disturb(act: Tensor, hook: Any, at: int = place, by: Tensor = size) -> Tensor:
                    act[:, at] += by[:, at] * direction
                    return act

                hooks = [(f"blocks.{layer}.hook_attn_out", disturb)]
                after = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
                total += (before.exp() * (before - after)).sum().item()
            expected = 0.5 * 0.02**2 * direction @ fisher[layer] @ direction
            assert total / tokens.numel() == pytest.approx(expected.item(), rel=0.1)


@needs_hooked_transformer
def test_the_loss_is_that_of_a_loop() -> None:
    dense, tokens = taught(), STREAM.batch(1, 3)
    config = make_config(batch_size=3)
    model = add_gate(choose_trained(copy_model(dense), config, ()))
    fisher = fisher_information(dense, tokens)
    start = LayerStart(model.eval(), dense, LayerText(tokens, fisher), config)
    start.go_on()
    sparse = add_gate(copy_model(dense))
    scores: list[Tensor] = []
    found = start.train(lambda: scores.append(torch.zeros(())))
    assert len(scores) == config.layer_steps
    # What it came to, once more with what it has learnt put into an ordinary gated model.
    attn: Any = sparse.blocks[1].attn
    trained: Any = model.blocks[1].attn
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            getattr(attn, name).copy_(getattr(trained, name))
        read = parts_of(dense, 1, tokens)["hook_resid_pre"]
        aim = parts_of(dense, 1, tokens)["hook_attn_out"]
        _, cache = sparse.run_with_cache(tokens)
        gate: list[Tensor] = []
        sparse.add_hook("blocks.1.attn.hook_gate", lambda act, hook: gate.append(act) or act)
        written = attn(*[sparse.blocks[1].ln1(read)] * 3)
        ridge = fisher[1] + 0.1 * fisher[1].diagonal().mean() * torch.eye(16)
        kl = 0.0
        for row in range(3):
            for place in range(STREAM.context):
                error = written[row, place] - aim[row, place]
                scale = (read + aim)[row, place].square().mean()
                kl += 0.5 * (error @ ridge @ error / scale).item()
    allowed = 3 * 2 * STREAM.context * (STREAM.context + 1) // 2
    assert found.kl == pytest.approx(kl / tokens.numel(), rel=1e-4)
    assert found.density == pytest.approx(gate[0].sum().item() / allowed)


def test_a_price_decides_how_much_stays_open() -> None:
    dense, tokens = taught(), STREAM.batch(0, 16)
    fisher = fisher_information(dense, tokens)
    results = {}
    for price in (0.3, 300.0):
        changes = {"layer_price": price, "layer_steps": 60, "batch_size": 8}
        config = make_config(**changes)
        model = add_gate(choose_trained(copy_model(dense), config, ())).eval()
        before = [gate.training for gate in gates(model)]
        start = LayerStart(model, dense, LayerText(tokens, fisher), config)
        results[price] = start.train(lambda: None)
        assert [gate.training for gate in gates(model)] == before == [False, False]
        assert all(parameter.grad is None for parameter in model.parameters())
    assert results[0.3].density < 0.7 * results[300.0].density
    assert results[300.0].kl < 0.5 * results[0.3].kl


def test_a_run_begins_with_what_layers_came_to(tmp_path: Path) -> None:
    result = run(tmp_path / "run", layer_steps=40, layer_price=1.0)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    first, without = lines[0], run(tmp_path / "without", layer_steps=0)
    assert len(first["layer_kl"]) == len(first["layer_density"]) == 2
    assert first["density"] < without.density.overall
    assert math.isfinite(first["kl"]) and first["best_step"] == 0
    assert not [*(tmp_path / "run/checkpoints").glob("layer_*")]
    assert result.satisfied
    # Only what was trained by itself has changed before the first step.
    assert (tmp_path / "run/training.html").is_file()


def test_a_run_stopped_in_a_layer_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(tmp_path / "straight")
    real, done = module._rate_at, []

    def stopping(step: int, steps: int) -> float:
        done.append(step)
        if len(done) == 9:  # in the second layer
            os.kill(os.getpid(), signal.SIGINT)
        return real(step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_rate_at", stopping)
        with pytest.raises(TrainingInterrupted, match="layer 1 of 2.*resume=True"):
            run(tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    assert [path.name for path in folder.glob("layer_*")] == ["layer_00000000"]
    done.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_rate_at", lambda *a: done.append(a) or real(*a))
        resumed = run(tmp_path / "run", resume=True)
    assert len(done) == 6, "the first layer was trained again"
    assert same_weights(straight, resumed)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("straight", "run")]
    assert [one.count("\n") for one in logs] == [5, 5]


def test_a_damaged_layer_is_trained_again_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(module.LayerStart, "go_on", lambda _: os.kill(os.getpid(), signal.SIGINT))
        patch.setattr(module.LayerStart, "layer", 1)
        with pytest.raises(TrainingInterrupted):
            run(tmp_path / "run")
    saved = tmp_path / "run/checkpoints/layer_00000000/tensors.safetensors"
    os.truncate(saved, 100)
    assert same_weights(straight, run(tmp_path / "run", resume=True))


def test_a_control_has_no_layers_to_start(tmp_path: Path) -> None:
    result = run(tmp_path / "run", gate=False, bound="ce", epsilon=0.02)
    assert result.satisfied
    assert '"step": 0' not in (tmp_path / "run/log.jsonl").read_text()


def test_what_cannot_be_started_by_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer_steps is 6; it must be 0 where lora_rank is 0"):
        make_config(lora_rank=0)
    with pytest.raises(FloatingPointError, match=r"layer 0 by itself is (nan|inf) .*layer_learn"):
        run(tmp_path / "run", layer_learning_rate=1e30)


def test_a_run_begins_with_the_updates_of_an_earlier_one(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    changes = {"layer_steps": 0, "learning_rate": 1e-9, "warm_up": 0.0}
    config = make_config(**changes)

    def go_on(name: str, **more: Any) -> TrainResult:
        return post_train(
            taught(), STREAM, config, tmp_path / name, frozen=(), progress=False, **more
        )

    second = go_on("second", updates=first.updates)
    assert second.kl == pytest.approx(first.kl, rel=1e-4)
    assert second.dense_ce == first.dense_ce
    assert second.density.overall == pytest.approx(first.density.overall, abs=0.01)
    assert go_on("other").kl != pytest.approx(first.kl, rel=1e-2)
    # It is another run than one that begins with nothing.
    with pytest.raises(ValueError, match=r"model.updates was .* and is"):
        other = {name: replace(one, up=2 * one.up) for name, one in first.updates.items()}
        go_on("second", updates=other, resume=True)
    assert go_on("second", updates=first.updates, resume=True).kl == second.kl


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0, "layer_steps": 0}, "lora_rank is 0"),
        ({}, "layers are started from nothing"),
    ],
)
def test_updates_that_nothing_begins_with_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = make_config(**changes)
    with pytest.raises(ValueError, match=message):
        post_train(taught(), STREAM, config, tmp_path / "run", frozen=(), updates={})
