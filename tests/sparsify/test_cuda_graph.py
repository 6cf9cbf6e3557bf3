"""A recorded step is the step, and is refused where it cannot be recorded."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from circuits.sparsify.config import TrainConfig
from circuits.sparsify.run import Run
from circuits.sparsify.train import post_train
from circuits.workers import Workers
from tests.helpers import CountingStream, make_taught_model, needs_hooked_transformer

pytestmark = needs_hooked_transformer


def recipe(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "steps": 6, "batch_size": 4, "learning_rate": 1e-3, "attention": "hooks",
        "control_every": 2, "control_sequences": 4, "selection_sequences": 4,
        "evaluate_every": 3, "checkpoint_every": 6,
    }  # fmt: skip
    return TrainConfig(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "on cpu, only on a CUDA GPU"),
        ({"gate": False}, "on cpu, only on a CUDA GPU"),
    ],
)
def test_a_graph_is_refused_off_a_gpu(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    stream, config = CountingStream(), recipe(cuda_graph=True, **changes)
    with pytest.raises(ValueError, match=reason):
        post_train(make_taught_model(stream), stream, config, tmp_path / "run", frozen=())
    assert not (tmp_path / "run").exists()


class _Waits(TorchDispatchMode):
    """Fails on operations that a CUDA graph cannot hold: copies to the GPU, values read from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        on_cpu = [x for x in given if x.device.type == "cpu" and x.ndim > 0]
        copied = "_to_copy" in str(func) and any(x.device.type == "cpu" for x in given)
        if (on_cpu or copied) and any(x.device.type == "meta" for x in given + made):
            raise AssertionError(f"{func} copies to the device")
        return out


@pytest.mark.parametrize(
    "changes",
    [{}, {"bound": "kl"}, {"lora_rank": 2, "bound": "kl", "penalty": "mean"}, {"gate": False}],
)
def test_nothing_in_a_step_waits_for_the_device(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = CountingStream()
    dense = make_taught_model(stream)
    run = Run.start(dense, stream, recipe(**changes), tmp_path / "run", (), False, Workers())
    for model in (run.model, run.teacher):
        if model is not None:
            model.to("meta")
    objective = run.objective
    objective.device = torch.device("meta")
    objective.price = objective.price.to("meta")
    monkeypatch.setattr(objective, "_autocast", nullcontext)  # There is none for this device.
    tokens = stream.batch(0, 4).to("meta")
    run.model.train()
    with objective.fast(), _Waits():
        found = objective.backward(tokens, 1)
    assert found.shape == (4,)
    assert any(weight.grad is not None for weight in run.model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{"bound": "kl", "lora_rank": 2}, {"gate": False}, {"precision": "bfloat16", "lora_rank": 2}],
)
def test_a_run_of_recorded_steps_is_the_run(changes: dict[str, Any], tmp_path: Path) -> None:
    stream = CountingStream()
    logs = []
    for name, cuda_graph in (("graph", True), ("eager", False)):
        model = make_taught_model(stream).to("cuda")
        config = recipe(cuda_graph=cuda_graph, **changes)
        post_train(model, stream, config, tmp_path / name, frozen=(), progress=False)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for recorded, eager in zip(*logs, strict=True):
        for key in set(eager) - {"seconds", "tokens_per_second"}:
            assert recorded[key] == pytest.approx(eager[key], rel=1e-4, abs=1e-6), key
