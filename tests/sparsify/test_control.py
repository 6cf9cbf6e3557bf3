"""The control: post-training's loop without a gate, on the cross-entropy alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from circuits.gate.gate import add_gate, is_gated
from circuits.models.load import copy_model
from circuits.sparsify import run as run_module
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.loss import cross_entropy, distillation_loss
from circuits.sparsify.train import TrainConfig, TrainResult, evaluate_ce, post_train
from circuits.tasks.corpus import corpus_tokenizer
from tests.helpers import assert_same_weights, make_taught_model, make_tiny_model

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Train = Callable[..., TrainResult]


def make_config(**changes: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "gate": False,
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warm_up": 0.0,
        "evaluate_every": 2,
        "selection_sequences": 8,
        "control_sequences": 2,
        "checkpoint_every": 1,
    }
    return TrainConfig(**(small | changes))


@pytest.fixture(scope="module")
def dense() -> HookedTransformer:
    tokenizer = corpus_tokenizer(context=32)
    return make_taught_model(CorpusStream(tokenizer, context=32), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def stream(dense: HookedTransformer) -> CorpusStream:
    return CorpusStream(dense.tokenizer, context=dense.cfg.n_ctx)


@pytest.fixture
def train(tmp_path: Path, dense: HookedTransformer, stream: CorpusStream) -> Train:
    def call(
        out: str = "run", *, resume: bool = False, frozen: tuple[str, ...] = (), **changes: Any
    ) -> TrainResult:
        config, folder = make_config(**changes), tmp_path / out
        return post_train(
            dense, stream, config, folder, frozen=frozen, resume=resume, progress=False
        )

    return call


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("tokens_per_second", "seconds")}
        for line in lines
    ]


def test_the_control_learns_and_the_dense_model_stays(
    train: Train, dense: HookedTransformer, stream: CorpusStream
) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    result = train()
    tokens = stream.held_out("selection", 8)
    assert result.ce == evaluate_ce(result.model, tokens)
    assert result.dense_ce == evaluate_ce(dense, tokens)
    assert result.ce < result.dense_ce - 0.01
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_the_control_is_dense_and_bound_to_nothing(train: Train) -> None:
    result = train()
    assert not is_gated(result.model)
    assert not result.model.training
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert result.satisfied
    assert (result.tau, result.density.overall) == (float("inf"), 1.0)
    with pytest.raises(ValueError, match="a control has no gate to make a card of"):
        result.card()


def test_one_step_is_the_optimisers(
    train: Train, dense: HookedTransformer, stream: CorpusStream
) -> None:
    control = train(steps=1, grad_clip=1e9).model
    tokens = stream.batch(0, 4)
    loss = cross_entropy(dense(tokens), tokens)
    name, weight = next((n, p) for n, p in dense.named_parameters() if p.shape == dense.W_E.shape)
    (gradient,) = torch.autograd.grad(loss, weight)
    # AdamW's first step is the learning rate times the gradient's sign, plus decay.
    expected = weight * (1 - 1e-2 * 0.01) - 1e-2 * gradient.sign()
    moved = gradient.abs() > 1e-5
    found = dict(control.named_parameters())[name]
    torch.testing.assert_close(found[moved], expected[moved], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("beta2", [0.999, 0.5])
def test_the_steps_are_to_the_bit_those_of_a_plain_loop(
    train: Train, dense: HookedTransformer, stream: CorpusStream, beta2: float
) -> None:
    config = make_config(beta2=beta2, lambda_start=7.0)
    plain: Any = copy_model(dense).train()
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=1e-2, betas=(0.9, beta2), weight_decay=0.01
    )
    for step in range(4):
        optimizer.param_groups[0]["lr"] = config.learning_rate_at(step)
        tokens = stream.batch(step, 4)
        optimizer.zero_grad()
        cross_entropy(plain(tokens), tokens).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    assert_same_weights(train(beta2=beta2, lambda_start=7.0).model, plain)


def test_the_log_has_no_edges_and_no_lambda(train: Train, tmp_path: Path) -> None:
    train()
    every_step = {"step", "sampled_ce", "learning_rate", "gradient_norm"}
    assert [set(line) for line in log_of(tmp_path / "run")] == [
        every_step,
        every_step | {"ce"},
        every_step,
        every_step | {"ce"},
    ]


def test_the_result_is_the_last_state_and_not_the_best(train: Train, tmp_path: Path) -> None:
    # The learning rate rises, and every step but the first is far too long.
    result = train(steps=8, evaluate_every=1, learning_rate=3.0, warm_up=0.99)
    measured = [line["ce"] for line in log_of(tmp_path / "run")]
    assert min(measured) < measured[-1] - 0.01
    assert (result.ce, result.best_step) == (measured[-1], 8)
    assert not list((tmp_path / "run" / "checkpoints").glob("best_*"))


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"distillation": 0.5}], ids=str)
def test_a_control_that_broke_off_resumes_to_the_same_bits(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    straight = train("straight", **changes)
    real = run_module.Run.train_step

    def broken(self: Any) -> dict[str, Any]:
        if self.step == 3:
            raise RuntimeError("broken off")
        return real(self)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken off"):
        patch.setattr(run_module.Run, "train_step", broken)
        train(**changes)
    resumed = train(resume=True, **changes)
    assert_same_weights(resumed.model, straight.model)
    assert resumed.ce == straight.ce
    assert log_of(tmp_path / "run") == log_of(tmp_path / "straight")


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"recompute": True}], ids=str)
def test_needing_less_memory_changes_the_control_by_rounding_only(
    train: Train, changes: dict[str, Any]
) -> None:
    # A small learning rate, since Adam magnifies the rounding of gradients that are 0.
    plain, other = (train(str(bool(c)), learning_rate=1e-4, **c) for c in ({}, changes))
    assert other.ce == pytest.approx(plain.ce, abs=1e-4)
    assert plain.ce < plain.dense_ce - 1e-3


def test_low_rank_updates_are_merged_into_the_control(
    train: Train, dense: HookedTransformer
) -> None:
    control = train(lora_rank=2, lora_targets="mlp", steps=2).model
    before = dict(dense.named_parameters())
    changed = {n for n, p in control.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(".mlp." in name for name in changed)


@pytest.mark.filterwarnings("ignore:this CPU has no instructions for bfloat16")
def test_steps_in_bfloat16_train_weights_in_float32(train: Train) -> None:
    half, whole = train("half", precision="bfloat16"), train("whole")
    assert half.model.W_E.dtype == torch.float32
    assert not torch.equal(half.model.W_E, whole.model.W_E)
    assert half.ce == pytest.approx(whole.ce, abs=0.05)


def test_distillation_keeps_the_control_nearer_to_the_dense_model(
    train: Train, dense: HookedTransformer, stream: CorpusStream
) -> None:
    free, held = (train(str(weight), distillation=weight).model for weight in (0.0, 10.0))
    tokens = stream.held_out("selection", 8)
    free_loss, held_loss = (
        distillation_loss(model(tokens), dense(tokens)) for model in (free, held)
    )
    assert held_loss < 0.8 * free_loss


def test_frozen_parameters_keep_their_values(train: Train, dense: HookedTransformer) -> None:
    name, _ = next(iter(dense.named_parameters()))  # The embedding.
    control = train(frozen=(name,)).model
    assert torch.equal(control.W_E, dense.W_E)
    assert not torch.equal(control.W_U, dense.W_U)


def test_a_loss_that_is_no_number_stops_before_the_step(train: Train) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 2; .*step_00000001"):
        train(learning_rate=1e30)


def test_a_control_is_not_taken_up_as_a_twin(train: Train) -> None:
    train(steps=1)
    with pytest.raises(ValueError, match="config.gate was False and is True"):
        train(steps=1, gate=True, resume=True)


def test_the_bar_shows_what_a_control_measures(
    dense: HookedTransformer,
    stream: CorpusStream,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = post_train(dense, stream, make_config(), tmp_path / "run", frozen=())
    shown = "".join(capsys.readouterr())
    assert f"CE {result.ce:.4f}, batch " in shown
    assert "lambda" not in shown


@pytest.mark.parametrize("beta2", [1.0, -0.1])
def test_a_decay_of_one_or_more_is_refused(beta2: float) -> None:
    with pytest.raises(ValueError, match=r"beta2 is .*; it must be in \[0, 1\)"):
        make_config(beta2=beta2)


def test_a_gated_model_is_refused(stream: CorpusStream, tmp_path: Path) -> None:
    gated = add_gate(make_tiny_model(tokenizer=corpus_tokenizer(context=32)))
    with pytest.raises(ValueError, match="has a gate already; .*starts from a dense model"):
        post_train(gated, stream, make_config(), tmp_path / "run")
