"""Post-training that bounds KL(dense || sparse): how it is measured, and what a run makes of it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.cli.train import _summary
from circuits.gate.card import GATE_FILE, GateCard
from circuits.gate.gate import add_gate
from circuits.models.hub import _gate_lines
from circuits.sparsify import evaluation
from circuits.sparsify.evaluation import evaluate, evaluate_kl
from circuits.sparsify.train import TrainConfig, TrainResult, post_train
from tests.helpers import CountingStream, make_taught_model, make_tiny_model


def run(out: Path, *, resume: bool = False, progress: bool = False, **options: Any) -> TrainResult:
    small: dict[str, Any] = {
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "control_every": 2,
        "control_sequences": 4,
        "evaluate_every": 2,
        "selection_sequences": 8,
        "checkpoint_every": 3,
        "bound": "kl",
    }
    config, stream = TrainConfig(**(small | options)), CountingStream()
    dense = make_taught_model(stream)
    return post_train(dense, stream, config, out, frozen=(), progress=progress, resume=resume)


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("tokens_per_second", "seconds")}
        for line in lines
    ]


@pytest.mark.parametrize(
    ("rows", "context", "d_vocab", "logits"),
    [(3, 7, 11, 1), (5, 12, 30, 300), (5, 12, 30, 2**26), (1, 2, 3, 300)],
    ids=str,
)
def test_the_divergence_is_that_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, rows: int, context: int, d_vocab: int, logits: int
) -> None:
    # That are held at once.
    monkeypatch.setattr(evaluation, "_LOGITS", {True: logits, False: logits})
    dense, sparse = make_tiny_model(d_vocab=d_vocab), add_gate(make_tiny_model(d_vocab=d_vocab))
    sparse.train()
    tokens = torch.randint(0, d_vocab, (rows, context))
    ce, kl, density = evaluate_kl(sparse, dense, tokens)
    assert sparse.training
    sparse.eval()
    total = 0.0
    for row in tokens:
        p, q = (model(row[None])[0].double().softmax(dim=-1).tolist() for model in (dense, sparse))
        for at in range(context):
            total += sum(a * math.log(a / b) for a, b in zip(p[at], q[at], strict=True))
    assert kl == pytest.approx(total / (rows * context), rel=1e-3)
    assert kl > 1e-4
    apart_ce, apart_density = evaluate(sparse, tokens)
    assert ce == pytest.approx(apart_ce, rel=1e-5)
    assert density.overall == apart_density.overall


@pytest.mark.newest
def test_a_run_keeps_its_divergence_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, epsilon = tmp_path / "run", 0.18
    result = run(out, steps=24, epsilon=epsilon, progress=True)
    shown = capsys.readouterr()
    lines = [line for line in log_of(out) if "kl" in line]
    best = min((line for line in lines if line["kl"] <= epsilon), key=lambda line: line["density"])
    assert result.satisfied
    assert (result.best_step, result.kl) == (best["step"], best["kl"])
    assert all({"ce", "epsilon"} <= set(line) and "tau" not in line for line in lines)
    checks = [line["control_kl"] > epsilon for line in log_of(out) if "control_kl" in line]
    assert (result.watch.checks, result.watch.outside) == (12, sum(checks))
    written = json.loads((out / "run.json").read_text())["result"]
    assert (written["kl"], written["epsilon"], written["tau"]) == (result.kl, epsilon, None)
    assert written["ce"] == result.ce
    last = lines[-1]
    assert f"KL {last['kl']:.4f} (epsilon 0.18), CE {last['ce']:.4f}, open" in shown.out + shown.err
    told = _summary(result)
    assert f"sparse CE {result.ce:.4f}, KL {result.kl:.4f}, bound 0.18 nats" in told
    assert f"KL on the control set was above its bound at {sum(checks)} of 12 checks" in told
    result.card().save(tmp_path)
    card = GateCard.load(tmp_path)
    assert (card.kl, card.epsilon, card.tau, card.slack) == (result.kl, epsilon, None, None)
    assert (card.ce, card.dense_ce, card.satisfied) == (result.ce, result.dense_ce, True)
    rows = _gate_lines(card)
    assert "| bound on that divergence | 0.18 (kept) |" in rows
    assert f"| KL(dense to sparse), nats per token | {result.kl:.4f} |" in rows
    assert not any("bound on the cross-entropy" in row for row in rows)


def test_a_card_from_before_there_was_a_choice_is_read(tmp_path: Path) -> None:
    GateCard(bias=0.0, tau=2.0, ce=1.5, satisfied=True).save(tmp_path)
    path = tmp_path / GATE_FILE
    held = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in held.items() if k not in ("kl", "epsilon")}))
    card = GateCard.load(tmp_path)
    assert (card.tau, card.kl, card.epsilon) == (2.0, None, None)


@pytest.mark.parametrize(("epsilon", "margin"), [(0.3, 0.002), (0.005, 0.0005)])
def test_lambda_follows_the_divergence(tmp_path: Path, epsilon: float, margin: float) -> None:
    run(tmp_path / "run", steps=20, epsilon=epsilon, lambda_start=0.5, evaluate_every=20)
    price: float = 0.5
    mean = math.nan  # of no step yet
    for line in log_of(tmp_path / "run"):
        assert line["lambda"] == pytest.approx(price)  # the one that the step was taken with
        if "control_kl" not in line:
            continue
        off = min((line["control_kl"] - epsilon + margin) / epsilon, 1.0)
        turned = not math.isnan(mean) and (mean > 0) != (off > 0)
        mean = off if math.isnan(mean) or turned else 0.9 * mean + 0.1 * off
        price = min(max(price * math.exp(2.0 * mean), 0.01), 10.0)


def test_the_loss_is_that_of_following_the_dense_model_alone(tmp_path: Path) -> None:
    held: dict[str, Any] = {
        "lambda_start": 3.0,
        "lambda_min": 3.0,
        "lambda_max": 3.0,
        "lambda_rate": 0.0,
    }
    run(tmp_path / "kl", steps=6, **held)
    run(tmp_path / "ce", steps=6, bound="ce", ce_weight=0.0, distillation=1.0, **held)
    names = ("sampled_ce", "expected_density", "gradient_norm")
    by_kl, by_ce = (
        [[line[name] for name in names] for line in log_of(tmp_path / bound)]
        for bound in ("kl", "ce")
    )
    assert by_kl == by_ce  # they differ by a number that no weight is in


def test_new_text_is_no_matter(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    learnt = dataclasses.replace(result, ce=result.dense_ce - 1)
    assert learnt.warnings == ()
    by_ce = dataclasses.replace(learnt, config=TrainConfig(), tau=result.dense_ce)
    (warning,) = by_ce.warnings
    assert "--bound kl" in warning


def test_a_divergence_that_is_never_small_enough_is_reported(tmp_path: Path) -> None:
    result = run(tmp_path / "run", epsilon=1e-6)
    assert not result.satisfied
    (reason,) = result.failures
    assert reason.startswith("no state kept the bound KL(dense || sparse) <= 1e-06, and this is")
    assert "allow more (--epsilon)" in reason


@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 2, "accumulate": 2}], ids=["weights", "lora"]
)
def test_a_run_goes_on_to_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    straight, log = run(tmp_path / "run", **options), log_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000012")
    resumed = run(tmp_path / "run", resume=True, **options)
    assert (resumed.kl, resumed.ce) == (straight.kl, straight.ce)
    assert log_of(tmp_path / "run") == log
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options", [{"tau": 2.0}, {"slack": 0.1}, {"ce_weight": 0.5}, {"distillation": 1.0}], ids=str
)
def test_options_of_the_other_bound_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be left out where bound is kl"):
        TrainConfig(bound="kl", **options)


def test_a_bound_on_the_divergence_is_refused_where_it_would_not_be_looked_at() -> None:
    with pytest.raises(ValueError, match="epsilon is 0.1; it must be left out where bound is not"):
        TrainConfig(epsilon=0.1)


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="bound is 'js'; it must be one of ce, kl"):
        TrainConfig(bound="js")
