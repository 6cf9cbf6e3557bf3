"""Sharded runs take the steps of whole ones, and hold a part of everything."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from circuits.cli import main
from circuits.models.backend import backend_of
from circuits.sparsify.run import Run
from circuits.sparsify.sharding import Sharding, views_are_read_only
from circuits.sparsify.train import TrainConfig, TrainResult, post_train
from circuits.workers import Workers, join_workers
from tests.helpers import CountingStream, make_taught_model
from tests.processes import start_together

pytestmark = [pytest.mark.slow, pytest.mark.newest]

# One head: a HookedTransformer's attention weights cannot be cut along their first axis.
SHAPE = {"n_heads": 1, "d_head": 16}
LORA: dict[str, Any] = {"lora_rank": 2, "recompute": True, "distillation": 0.5}
KL: dict[str, Any] = {"bound": "kl", "epsilon": 0.05, "slack": 0.0}


def make_config(n_processes: int, **changes: Any) -> TrainConfig:
    """A batch of 4 parts, for each process as many as for the others."""
    options: dict[str, Any] = {"slack": 100.0} | changes
    return TrainConfig(
        steps=4, batch_size=8, accumulate=4 // n_processes, learning_rate=1e-4, control_every=2,
        control_sequences=4, evaluate_every=4, selection_sequences=4, **options,
    )  # fmt: skip


def unused(model: Any) -> set[str]:
    """Weights of a TransformerBridge from which others were split, and which are kept."""
    spare = backend_of(model).spare_parameters(model)
    return {name for name, parameter in model.named_parameters() if parameter in spare}


def train(out: Path, config: TrainConfig, **flags: Any) -> TrainResult:
    model = make_taught_model(CountingStream(), **SHAPE)
    frozen = unused(model)
    return post_train(model, CountingStream(), config, out, frozen=frozen, progress=False, **flags)


def begin(out: Path, workers: Workers, sharding: Sharding | None = None) -> Run:
    """The first half of a run."""
    model = make_taught_model(CountingStream(), **SHAPE)
    run = Run.start(
        model, CountingStream(), make_config(workers.count), out, unused(model), False,
        workers, sharding,
    )  # fmt: skip
    with views_are_read_only():
        run.begin()
        for _ in range(2):
            record = run.train_step()
            run.files.log(record | (run.control() if run.step == 2 else {}))
    run.save()
    return run


def weights(result: TrainResult) -> dict[str, Tensor]:
    return {name: held.detach().contiguous() for name, held in result.model.named_parameters()}


def largest_parts(run: Run) -> dict[str, float]:
    """The largest fraction that this process holds of any weight, gradient or moment."""
    held: dict[str, list[float]] = {"weight": [], "gradient": []}
    for weight in run.weights.values():
        state = {key: value for key, value in run.optimizer.state[weight].items() if key != "step"}
        for kind, tensor in {"weight": weight, "gradient": weight.grad, **state}.items():
            part: Any = tensor
            held.setdefault(kind, []).append(part.to_local().numel() / part.numel())
    return {kind: max(parts) for kind, parts in held.items()}


def make_sharded_runs(folder: Path) -> None:
    device = torch.device("cpu")
    workers = join_workers(device)
    filters = list(warnings.filters)
    lora = train(folder / "lora", make_config(workers.count, **LORA), shard_on="cpu")
    save_file(weights(lora), folder / f"lora{workers.rank}.safetensors")
    bounded = train(folder / "kl", make_config(workers.count, **KL), shard_on="cpu")
    save_file(weights(bounded), folder / f"kl{workers.rank}.safetensors")
    back = train(folder / "whole, sharded", make_config(workers.count), shard_on="cpu", resume=True)
    save_file(weights(back), folder / f"back{workers.rank}.safetensors")
    assert warnings.filters == filters  # what a run silences, it lets speak again
    run = begin(folder / "sharded, whole", workers, Sharding(device, workers.count))
    sharded = {name for name, held in run.model.named_parameters() if isinstance(held, DTensor)}
    assert sharded == set(run.weights)  # what is not used is not sent along
    (folder / f"parts{workers.rank}.json").write_text(json.dumps(largest_parts(run)))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    begin(folder / "whole, sharded", Workers())
    for process in start_together(2, make_sharded_runs, folder):
        ended = process.ended()
        assert ended.code == 0, ended
        assert "Warning" not in ended.err
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after a run that was never sharded or stopped."""
    return weights(train(tmp_path_factory.mktemp("whole") / "run", make_config(1)))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].sub(weight).abs().max() < 1e-6, name


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_holds_half_of_everything(sharded: Path, rank: int) -> None:
    parts = json.loads((sharded / f"parts{rank}.json").read_text())
    assert parts == {"weight": 0.5, "gradient": 0.5, "exp_avg": 0.5, "exp_avg_sq": 0.5}


@pytest.mark.parametrize("rank", [0, 1])
def test_updates_and_parts_of_a_batch_are_as_in_one_process(
    sharded: Path, tmp_path: Path, rank: int
) -> None:
    found = load_file(sharded / f"lora{rank}.safetensors")
    assert_close(found, weights(train(tmp_path / "run", make_config(1, **LORA))))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bounded_divergence_is_that_of_one_process(
    sharded: Path, tmp_path: Path, rank: int
) -> None:
    result = train(tmp_path / "run", make_config(1, **KL))
    assert_close(load_file(sharded / f"kl{rank}.safetensors"), weights(result))
    found = json.loads((sharded / "kl" / "run.json").read_text())["result"]
    assert found["kl"] == pytest.approx(result.kl, rel=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_whole_run_is_resumed_sharded(sharded: Path, whole: dict[str, Tensor], rank: int) -> None:
    assert_close(load_file(sharded / f"back{rank}.safetensors"), whole)


def test_a_sharded_run_is_resumed_whole(sharded: Path, whole: dict[str, Tensor]) -> None:
    resumed = train(sharded / "sharded, whole", make_config(1), resume=True)
    assert_close(weights(resumed), whole)


def test_one_process_cannot_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="several processes, and there is one"):
        train(tmp_path / "run", make_config(1), shard_on="cpu")
    assert main(["train", "--out", str(tmp_path / "run"), "--shard"]) == 2
    assert "several processes, and there is one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
