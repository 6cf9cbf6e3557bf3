"""Post-training on a tiny model: the constraint, the log, kills, interrupts and bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

from circuits.cli import main
from circuits.gate.density import Density
from circuits.gate.gate import add_gate, is_gated
from circuits.gate.top_k import add_top_k
from circuits.models.backend import Model
from circuits.models.load import load_model
from circuits.models.saving import save_model
from circuits.numbers import percent
from circuits.sparsify import objective
from circuits.sparsify import progress as progress_module
from circuits.sparsify import run as run_module
from circuits.sparsify.checkpoint import load_checkpoint, save_checkpoint
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.folder_lock import FolderInUseError
from circuits.sparsify.loss import cross_entropy
from circuits.sparsify.recompute import recomputed_blocks
from circuits.sparsify.train import (
    TrainConfig,
    TrainingInterrupted,
    TrainResult,
    evaluate_ce,
    post_train,
)
from tests.helpers import (
    HAS_HOOKED_TRANSFORMER,
    CountingStream,
    assert_same_weights,
    make_taught_model,
    make_tiny_model,
    needs_hooked_transformer,
)
from tests.processes import Started, wait_for

CONTEXT = CountingStream.context


def new_dense(**overrides: Any) -> HookedTransformer:
    return make_taught_model(CountingStream(), **overrides)


@pytest.fixture
def tiny_model() -> HookedTransformer:
    return new_dense()


def make_config(**changes: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "control_every": 2,
        "control_sequences": 4,
        "evaluate_every": 4,
        "selection_sequences": 8,
        "checkpoint_every": 3,
    }
    return TrainConfig(**(small | changes))


def run(out: Path, model: Model | None = None, **options: Any) -> TrainResult:
    stream = options.pop("stream", CountingStream())
    # The tiny model cannot be saved: it does not come from a Hugging Face model.
    flags = {"frozen": options.pop("frozen", ()), "resume": options.pop("resume", False)}
    config = make_config(**options)
    return post_train(model or new_dense(), stream, config, out, progress=False, **flags)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_logs(first: Path, second: Path) -> None:
    for left, right in zip(log_of(first), log_of(second), strict=True):
        for name in ("tokens_per_second", "seconds"):
            del left[name], right[name]
        assert left == right


def weights(model: HookedTransformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.newest
def test_a_trained_model_keeps_its_cross_entropy_and_loses_edges(
    tmp_path: Path, tiny_model: HookedTransformer
) -> None:
    before = weights(tiny_model)
    result = run(tmp_path / "run", tiny_model, steps=150, evaluate_every=10, learning_rate=1e-2)
    assert result.satisfied
    assert result.ce <= result.tau == result.dense_ce
    assert result.density.overall < 0.2  # about half of the edges are open at first
    assert result.density.context == CONTEXT
    assert is_gated(result.model)
    assert not result.model.training
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert not is_gated(tiny_model)
    assert all(torch.equal(before[name], p) for name, p in tiny_model.named_parameters())
    stream = CountingStream()
    assert result.dense_ce == evaluate_ce(tiny_model, stream.held_out("selection", 8))
    assert result.ce == evaluate_ce(result.model, stream.held_out("selection", 8))


def test_the_result_is_the_sparsest_state_that_keeps_the_bound(tmp_path: Path) -> None:
    result = run(tmp_path / "run", steps=40)
    evaluated = [line for line in log_of(tmp_path / "run") if "ce" in line]
    assert len(evaluated) == 10
    kept = [line for line in evaluated if line["ce"] <= result.tau]
    best = min(kept, key=lambda line: line["density"])
    assert (result.best_step, result.ce) == (best["step"], best["ce"])
    assert result.density.overall == best["density"]


def test_a_bound_that_is_never_kept_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    density = Density(torch.full((2, 2), 0.01), CONTEXT)
    monkeypatch.setattr(run_module, "evaluate_ce", lambda *_: 0.5)  # of the dense model
    monkeypatch.setattr(run_module, "evaluate", lambda *_: (0.7, density))
    result = run(tmp_path / "run", slack=0.1)
    assert not result.satisfied
    assert (result.tau, result.ce) == (pytest.approx(0.6), 0.7)
    assert result.best_step == result.steps == 12


def test_the_log_has_a_line_a_step(tmp_path: Path) -> None:
    run(tmp_path / "run")
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert {"sampled_ce", "expected_density", "lambda", "learning_rate"} <= set(line)
        assert ("control_ce" in line) == (line["step"] % 2 == 0)
        assert ("density_per_layer" in line) == (line["step"] % 4 == 0)
    assert lines[-1]["best_step"] is not None


def test_frozen_parameters_do_not_move(tmp_path: Path, tiny_model: HookedTransformer) -> None:
    before = weights(tiny_model)
    names = sorted(before)[:2]
    result = run(tmp_path / "run", tiny_model, frozen=names, slack=10.0)
    moved = {n for n, p in result.model.named_parameters() if not torch.equal(before[n], p)}
    # A TransformerBridge also holds joint matrices that it does not use.
    assert moved == {name for name in before if ".qkv." not in name} - set(names)


def test_distillation_changes_the_loss_only_if_asked_for(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", slack=10.0)
    distilled = run(tmp_path / "distilled", slack=10.0, distillation=1.0)
    again = run(tmp_path / "again", slack=10.0)
    assert_same_weights(plain.model, again.model)
    assert not torch.equal(plain.model.W_E, distilled.model.W_E)


def test_without_a_weight_the_cross_entropy_has_no_part_in_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: dict[str, Any] = {"slack": 10.0, "distillation": 1.0, "ce_weight": 0.0}
    first = run(tmp_path / "first", **alone)
    both = run(tmp_path / "both", **dict(alone, ce_weight=1.0))
    monkeypatch.setattr(objective, "cross_entropy", lambda *args: 7 * cross_entropy(*args))
    second = run(tmp_path / "second", **alone)
    assert_same_weights(first.model, second.model)
    assert not torch.equal(first.model.W_E, both.model.W_E)


def test_the_bound_can_be_given_outright(tmp_path: Path, tiny_model: HookedTransformer) -> None:
    control_set = CountingStream().held_out("control", 4)
    dense_ce = run(tmp_path / "free", tiny_model).dense_ce
    result = run(tmp_path / "run", tiny_model, tau=dense_ce + 0.25)
    assert result.tau == dense_ce + 0.25
    assert result.card().slack == pytest.approx(0.25)
    control_tau = log_of(tmp_path / "run")[1]["control_tau"]
    assert control_tau - evaluate_ce(tiny_model, control_set) == pytest.approx(0.25)
    below = run(tmp_path / "below", tiny_model, tau=dense_ce - 1.0)
    assert not below.satisfied
    assert below.card().slack == pytest.approx(-1.0)


def test_lambda_keeps_its_first_value_while_it_warms_up(tmp_path: Path) -> None:
    run(tmp_path / "at once")
    run(tmp_path / "later", lambda_warm_up=0.5)
    at_once, later = (
        {line["step"]: line["lambda"] for line in log_of(tmp_path / name)}
        for name in ("at once", "later")
    )
    # Each line has the lambda that the step was taken with; every second step moves it.
    assert [at_once[step] for step in (1, 2)] == [1.0, 1.0]
    assert at_once[3] != 1.0
    assert [later[step] for step in range(1, 9)] == [1.0] * 8
    assert later[9] != 1.0


@pytest.mark.parametrize("penalty", ["mean", "rms", "log"])
def test_every_penalty_trains(tmp_path: Path, penalty: str) -> None:
    run(tmp_path / "run", penalty=penalty, steps=20, edge_weight=0.5)
    densities = [line["expected_density"] for line in log_of(tmp_path / "run")]
    assert densities[-1] < densities[0]


def test_the_learning_rate_rises_and_falls() -> None:
    config = make_config(steps=100, warm_up=0.2, learning_rate=1.0)
    rates = [config.learning_rate_at(step) for step in range(100)]
    peak = rates.index(max(rates))
    assert peak == 20
    assert rates[20] == 1.0
    assert rates == sorted(rates[:21]) + sorted(rates[21:], reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_the_default_learning_rate_is_less_for_a_wider_model(
    tmp_path: Path, tiny_model: HookedTransformer
) -> None:
    config = make_config(learning_rate=None)
    with pytest.raises(ValueError, match="leaves the learning rate to the model's width"):
        config.learning_rate_at(0)
    narrow, wide = (config.for_width(width).learning_rate for width in (128, 512))
    assert (narrow, wide) == (1.5e-3, 1.5e-3 / 4)
    assert make_config().for_width(512) == make_config()
    result = run(tmp_path / "run", tiny_model, learning_rate=None, slack=100.0, steps=2)
    taken = result.config.learning_rate
    assert taken == pytest.approx(1.5e-3 * 128 / tiny_model.cfg.d_model)
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["config"]["learning_rate"] == taken
    )


def test_what_was_measured_in_the_warm_up_does_not_move_lambda(tmp_path: Path) -> None:
    config = make_config(lambda_warm_up=0.5)
    run(tmp_path / "run", lambda_warm_up=0.5)
    lines = {line["step"]: line for line in log_of(tmp_path / "run")}
    # The first update, after step 8, is by what was measured then, though 4 checks came before.
    violation = lines[8]["control_ce"] - lines[8]["control_tau"] + config.margin
    assert lines[9]["lambda"] == pytest.approx(math.exp(config.lambda_rate * violation))


@pytest.mark.slow
def test_the_result_says_how_long_the_bound_was_broken(tmp_path: Path) -> None:
    result = run(tmp_path / "run", steps=60, slack=0.05)
    checks = [line for line in log_of(tmp_path / "run") if "control_ce" in line]
    outside = [line["control_ce"] > line["control_tau"] for line in checks]
    assert 0 < sum(outside) < len(outside) == 30
    assert (result.watch.checks, result.watch.outside) == (30, sum(outside))
    since = next((i for i in range(30) if all(outside[i:])), None)
    assert result.watch.since == (None if since is None else checks[since]["step"])
    written = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert written["bound"] == dataclasses.asdict(result.watch)
    assert run(tmp_path / "run", steps=60, slack=0.05, resume=True).watch == result.watch


def test_a_large_seed_trains(tmp_path: Path) -> None:
    first, again, other = (
        run(tmp_path / name, seed=seed, slack=10.0).model
        for name, seed in {"first": 20251124, "again": 20251124, "other": 2**63 - 1}.items()
    )
    assert_same_weights(first, again)
    assert not torch.equal(first.W_E, other.W_E)


def test_by_default_what_is_trained_can_be_saved(tmp_path: Path) -> None:
    dense = load_model("dense")
    stream = CorpusStream(dense.tokenizer, context=16)
    config = make_config(steps=1, slack=10.0)
    result = post_train(dense, stream, config, tmp_path / "run", progress=False)
    save_model(result.model, tmp_path / "model", gate=result.card())
    assert not torch.equal(result.model.W_E, dense.W_E)
    with pytest.raises(ValueError, match="keeps its highest scores only .* could not be saved"):
        post_train(add_top_k(dense, 2), stream, config, tmp_path / "top", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


@needs_hooked_transformer  # a TransformerBridge has no parameter that its Hugging Face model lacks
def test_parameters_that_could_not_be_saved_are_refused(tmp_path: Path) -> None:
    dense = load_model("dense")
    stream = CorpusStream(dense.tokenizer, context=16)
    config = make_config(steps=1, slack=10.0)
    with pytest.raises(ValueError, match="could not be saved: .*unembed.b_U; freeze frozen_par"):
        post_train(dense, stream, config, tmp_path / "all", frozen=(), progress=False)
    assert not list(tmp_path.iterdir())


@needs_hooked_transformer
def test_a_model_that_cannot_be_saved_is_trained_only_if_asked_for(tmp_path: Path) -> None:
    message = "has no Hugging Face counterpart.*to train it all the same .* give frozen=()"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", frozen=None)
    assert not (tmp_path / "run").exists()


def start_run(out: Path, steps: int = 100_000) -> Started:
    """Starts a run; by default one without an end."""
    return Started(lambda: run(out, steps=steps))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the process: the last bit of a sum depends on how it is cut up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    steps = 60
    process = start_run(tmp_path / "killed", steps)
    folder = tmp_path / "killed" / "checkpoints"
    wait_for(lambda: (folder / "step_00000021").exists(), process)
    process.send(signal.SIGKILL)
    process.ended()
    done = len((tmp_path / "killed" / "log.jsonl").read_text().splitlines())
    assert 21 <= done < steps
    resumed = run(tmp_path / "killed", steps=steps, resume=True)
    straight = run(tmp_path / "straight", steps=steps)
    assert_same_weights(resumed.model, straight.model)
    assert resumed.best_step == straight.best_step
    assert_same_logs(tmp_path / "killed", tmp_path / "straight")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start_run(tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 4, process)
    process.send(signal.SIGINT)
    ended = process.ended(60)
    assert ended.code not in (0, None)
    assert "TrainingInterrupted: stopped after step" in ended.err
    assert "resume=True" in ended.err
    step = log_of(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}").is_dir()


def test_an_interrupted_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(tmp_path / "straight")
    real = run_module.Run.train_step

    def interrupted(self: Any) -> dict[str, Any]:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted, match="step 5 of 12"):
        patch.setattr(run_module.Run, "train_step", interrupted)
        run(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert_same_weights(run(tmp_path / "run", resume=True).model, straight.model)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start_run(tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 4, process)
    process.send(signal.SIGTERM)
    ended = process.ended(60)
    assert "TrainingInterrupted: stopped after step" in ended.err
    assert "resume=True" in ended.err
    step = log_of(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_stopped_command_says_so_in_its_exit_code_and_goes_on_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    def command(name: str, *options: str) -> int:
        return main(
            ["train", "--out", str(tmp_path / name), "--steps", "3", "--batch-size", "2",
             "--context", "16", "--slack", "100", *options]
        )  # fmt: skip

    real_step, real_save = run_module.Run.train_step, run_module.Run.save

    def stopped(self: Any) -> dict[str, Any]:
        if self.step == 1:
            os.kill(os.getpid(), number)
        return real_step(self)

    def saving(self: Any) -> None:
        if number == signal.SIGTERM:
            os.kill(os.getpid(), number)  # A launcher and a scheduler may both send it.
        real_save(self)

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "train_step", stopped)
        patch.setattr(run_module.Run, "save", saving)
        assert command("run") == code
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("circuits: stopped after step 2 of 3; the state is saved in ")
    assert "(--resume)" in said
    assert command("run", "--resume") == command("straight") == 0
    weights_file = Path("model", "model.safetensors")
    first, second = ((tmp_path / name / weights_file).read_bytes() for name in ("run", "straight"))
    assert first == second


@pytest.mark.slow
def test_a_run_is_left_alone_by_one_that_would_resume_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_run(out)
    wait_for(lambda: (out / "checkpoints" / "step_00000003").exists(), process)
    for resume in (True, False):
        with pytest.raises(FolderInUseError, match=f"run is in use by process {process.pid} on "):
            run(out, steps=100_000, resume=resume)
    lines = (out / "log.jsonl").read_text().count("\n")
    wait_for(lambda: (out / "log.jsonl").read_text().count("\n") > lines + 6, process)
    process.send(signal.SIGKILL)
    process.ended()
    with pytest.raises(ValueError, match="config.steps was 100000 and is 12"):
        run(out, resume=True)  # It is free again, and looked at.


def _compete(out: str, start: float, told: Any) -> None:
    torch.set_num_threads(1)
    while time.time() < start:
        pass
    try:
        told.put(str(run(Path(out), steps=40).steps))
    except (FolderInUseError, ValueError) as error:
        told.put(str(error))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, where torch has threads
def test_of_runs_that_start_at_once_one_goes_on_and_is_not_disturbed(tmp_path: Path) -> None:
    new_dense()  # so that every process has it
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    for attempt in range(2):
        out, start = str(tmp_path / str(attempt)), time.time() + 0.5
        processes = [context.Process(target=_compete, args=(out, start, told)) for _ in range(3)]
        for process in processes:
            process.start()
        outcomes = sorted(told.get() for _ in processes)
        for process in processes:
            process.join()
        assert outcomes.count("40") == 1, outcomes
        assert sum("in use by " in line or "is not empty" in line for line in outcomes) == 2
        assert [line["step"] for line in log_of(Path(out))] == list(range(1, 41))


@contextlib.contextmanager
def written_files_limited(size: int) -> Iterator[None]:
    """A file that would grow beyond `size` bytes is cut there, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("gate", "step", "room", "unwritten", "latest"),
    [
        (True, 5, 20, "log.jsonl", "step_00000003"),
        (True, 9, 9_000, "checkpoints/step_00000009", "step_00000006"),
        (True, 4, 9_000, "checkpoints/best_00000004", "step_00000003"),
        (False, 5, 20, "log.jsonl", "step_00000003"),
        (False, 9, 9_000, "checkpoints/step_00000009", "step_00000006"),
    ],
    ids=["log", "checkpoint", "best weights", "log of a control", "checkpoint of a control"],
)
def test_a_full_disk_is_told_and_costs_no_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gate: bool,
    step: int,
    room: int,
    unwritten: str,
    latest: str,
) -> None:
    out, options = tmp_path / "run", {"gate": gate, "slack": 10.0}
    log = out / "log.jsonl"
    straight = run(tmp_path / "straight", **options)
    real = run_module.Run.train_step

    def filling(self: Any) -> dict[str, Any]:
        if self.step == step - 1:
            # The log still has room for a part of a line, or for the rest of the run.
            stack.enter_context(written_files_limited(log.stat().st_size + room))
        return real(self)

    message = (
        f"{out / unwritten} could not be written: .*[Ff]ile too large.*; the last checkpoint, "
        rf"{out / 'checkpoints' / latest}, is intact; mend that \(free some space\), then go on "
        r"with resume=True \(--resume\)$"
    )
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=message),
        contextlib.ExitStack() as stack,
    ):
        patch.setattr(run_module.Run, "train_step", filling)
        run(out, **options)
    kept = sorted(path.name for path in (out / "checkpoints").glob("step_*"))
    assert kept[-1] == latest
    resumed = run(out, resume=True, **options)
    assert_same_weights(resumed.model, straight.model)
    assert resumed.best_step == straight.best_step
    assert_same_logs(out, tmp_path / "straight")


def test_a_disk_that_is_full_from_the_start_says_that_nothing_is_saved(tmp_path: Path) -> None:
    message = "step_00000003 could not be written: .*; there is no checkpoint yet; mend that"
    with pytest.raises(OSError, match=message), written_files_limited(9_000):
        run(tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    run(tmp_path / "run", resume=True)
    assert len(log_of(tmp_path / "run")) == 12


def test_a_disk_that_is_still_full_stops_the_resumed_run_in_the_same_way(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    message = "recipe.toml could not be written: .*step_00000012, is intact"
    with pytest.raises(OSError, match=message), written_files_limited(100):
        run(tmp_path / "run", resume=True)
    assert_same_weights(run(tmp_path / "run", resume=True).model, first.model)


def test_a_damaged_checkpoint_costs_steps_but_not_bits(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    os.truncate(folder / "step_00000012" / "tensors.safetensors", 100)
    with pytest.warns(UserWarning, match="step_00000012 is damaged.*going back to .*step_00000009"):
        resumed = run(tmp_path / "run", resume=True)
    assert_same_weights(first.model, resumed.model)
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, 13))


SPARSER: dict[str, Any] = {"slack": 10.0, "edge_weight": 100.0, "learning_rate": 1e-2}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_damaged_best_weights_cost_steps_but_not_bits(tmp_path: Path, name: str) -> None:
    first = run(tmp_path / "run", **SPARSER)
    folder = tmp_path / "run" / "checkpoints"
    assert first.best_step == 12  # The state before it refers to the best of step 8.
    os.truncate(folder / "best_00000012" / name, 10)
    with pytest.warns(UserWarning, match="best_00000012.*going back to .*step_00000009"):
        resumed = run(tmp_path / "run", resume=True, **SPARSER)
    assert_same_weights(first.model, resumed.model)
    assert (resumed.best_step, resumed.warnings) == (12, first.warnings)
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, 13))


def test_best_weights_that_are_lost_are_told_and_looked_for_anew(tmp_path: Path) -> None:
    first = run(tmp_path / "run", **SPARSER)
    folder = tmp_path / "run" / "checkpoints"
    for step in (8, 12):
        shutil.rmtree(folder / f"best_{step:08d}")
    message = "the best weights up to step 12, of step 12 with .* are lost: .*going on from .*0012"
    with pytest.warns(UserWarning, match=message):
        resumed = run(tmp_path / "run", resume=True, **SPARSER)
    # The last state is measured again, and is the best of what is left.
    assert resumed.satisfied
    assert_same_weights(first.model, resumed.model)
    assert resumed.warnings[-1].startswith("the best weights up to step 12, of step 12")
    again = run(tmp_path / "run", resume=True, **SPARSER)  # without a warning
    assert again.warnings == resumed.warnings
    assert_same_weights(first.model, again.model)


def test_a_state_of_another_rule_for_lambda_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step_00000012"
    found = load_checkpoint(path)
    save_checkpoint(path, found.tensors, {k: v for k, v in found.state.items() if k != "bound"})
    with pytest.raises(ValueError, match="by an earlier version of circuits, which moved lambda"):
        run(tmp_path / "run", resume=True)


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    first, again = run(tmp_path / "run"), run(tmp_path / "run", resume=True)
    assert_same_weights(first.model, again.model)
    assert (first.ce, first.best_step) == (again.ce, again.best_step)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        run(tmp_path / "run", learning_rate=1e30)
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    config["config"]["learning_rate"] = 3e-3
    (tmp_path / "run" / "run.json").write_text(json.dumps(config))
    run(tmp_path / "run", resume=True)
    assert len(log_of(tmp_path / "run")) == 12


def test_a_loss_that_is_no_number_stops_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = objective.cross_entropy, []

    def broken(logits: Tensor, tokens: Tensor) -> Tensor:
        calls.append(logits)
        return real(logits, tokens) * (math.nan if logits.requires_grad and len(calls) > 9 else 1)

    monkeypatch.setattr(objective, "cross_entropy", broken)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+; .*step_0000000"):
        run(tmp_path / "run")


def test_weights_that_are_no_number_are_named(
    tmp_path: Path, tiny_model: HookedTransformer
) -> None:
    with torch.no_grad():
        tiny_model.W_E[3] = math.nan
    with pytest.raises(FloatingPointError, match="at step 1; there is no checkpoint yet; lower"):
        run(tmp_path / "run", tiny_model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number >= 1"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be a number > 0"),
        ({"warm_up": 1.0}, r"warm_up is 1.0; it must be in \[0, 1\)"),
        ({"slack": -0.1}, "slack is -0.1; it must be a number >= 0"),
        ({"tau": 0.0}, "tau is 0.0; it must be a number > 0, or None"),
        ({"tau": 3.0, "slack": 0.1}, "slack is 0.1; it must be 0 where tau is given"),
        ({"ce_weight": 0.0}, "distillation is 0.0; it must be > 0 where ce_weight is 0"),
        ({"lambda_warm_up": 1.0}, r"lambda_warm_up is 1.0; it must be in \[0, 1\)"),
        ({"bias": math.inf}, "bias is inf; it must be a finite number"),
        ({"lambda_start": 20.0}, "lambda_start is 20.0; .*lambda_max = 10.0"),
        (
            {"steps": -1, "seed": -1},
            "steps is -1; .*; seed is -1; it must be a whole number from 0 to",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_an_impossible_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_bad_arguments_are_refused_together_before_anything_is_written(
    tmp_path: Path, tiny_model: HookedTransformer
) -> None:
    message = (
        "has a gate already.*; context 40 is longer than the model's n_ctx 32; "
        r"frozen names \['b'\] are not parameters of the model; the data holds token 49"
    )
    stream = CountingStream(context=40, d_vocab=50)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", add_gate(tiny_model), stream=stream, frozen=("b",))
    assert not (tmp_path / "run").exists()


def test_a_different_run_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(ValueError, match="config.steps was 12 and is 13"):
        run(tmp_path / "run", resume=True, steps=13)
    with pytest.raises(ValueError, match="data.seed was 0 and is 1"):
        run(tmp_path / "run", resume=True, stream=CountingStream(seed=1))
    with pytest.raises(ValueError, match="model.weights was"):
        run(tmp_path / "run", new_dense(seed=1), resume=True)
    with pytest.raises(ValueError, match="not empty"):
        run(tmp_path / "run")


def test_without_a_terminal_each_evaluation_is_a_line_with_the_numbers_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    post_train(new_dense(), CountingStream(), make_config(), tmp_path / "run", frozen=())
    printed = capsys.readouterr()
    assert printed.out == ""
    told = printed.err.splitlines()
    evaluated = [line for line in log_of(tmp_path / "run") if "ce" in line]
    assert len(told) == len(evaluated) == 3
    for text, line in zip(told, evaluated, strict=True):
        assert text.startswith(
            f"step {line['step']} of 12: CE {line['ce']:.4f} (tau {line['tau']:.4f}), open "
            f"{percent(line['density'])}, lambda {line['lambda']:.2f}, "
        )
        assert re.search(r"[\d,]+ tokens/s \(\d+% done, .* so far, about .* left\)$", text)


def test_a_check_of_lambda_is_told_where_evaluations_are_far_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "BETWEEN_CHECKS", 0.0)
    post_train(new_dense(), CountingStream(), make_config(), tmp_path / "run", frozen=())
    told = capsys.readouterr().err.splitlines()
    checked = log_of(tmp_path / "run")[1]
    assert [line.split(":")[0] for line in told] == [f"step {n} of 12" for n in range(2, 13, 2)]
    assert told[0].startswith(
        f"step 2 of 12: control CE {checked['control_ce']:.4f} (bound "
        f"{checked['control_tau']:.4f}), open {percent(checked['expected_density'])} expected, "
        "lambda "
    )


KILLED_STEPS, KILLS = 120, 8


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    started = time.monotonic()
    straight = run(tmp_path / "straight", steps=KILLED_STEPS)
    longest = (time.monotonic() - started) / (KILLS + 2)  # so that they do not finish the run
    out, rng = tmp_path / "killed", random.Random(0)
    for _ in range(KILLS):
        process = Started(lambda: run(out, steps=KILLED_STEPS, resume=(out / "run.json").exists()))
        time.sleep(rng.uniform(0.05, longest))
        assert process.runs
        process.send(signal.SIGKILL)
        process.ended()
    lines = len((out / "log.jsonl").read_text().splitlines())
    assert KILLS < lines < KILLED_STEPS  # it had got on, and was not done
    resumed = run(out, steps=KILLED_STEPS, resume=True)
    assert_same_weights(resumed.model, straight.model)
    assert [line["step"] for line in log_of(out)] == [
        line["step"] for line in log_of(tmp_path / "straight")
    ]


def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    # With every gate open no random number counts, and the penalty has no gradient.
    whole, parts = (run(tmp_path / str(n), bias=60.0, steps=3, accumulate=n).model for n in (1, 4))
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if not name.endswith(
            ("b_K", ".k._original_component.bias")
        ):  # Its gradient is 0 but for rounding, which Adam magnifies.
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_batch_that_cannot_be_parted_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulate is 3; it must be a divisor of batch_size = 4"):
        make_config(accumulate=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this CPU has no instructions for bfloat16")
def test_steps_in_bfloat16_train_weights_in_float32(tmp_path: Path) -> None:
    half = run(tmp_path / "half", steps=60, learning_rate=1e-2, precision="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())
    whole = run(tmp_path / "whole", steps=60, learning_rate=1e-2)
    assert not torch.equal(half.model.W_E, whole.model.W_E)
    assert half.ce == pytest.approx(whole.ce, abs=0.2)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'int8'; it must be one of"):
        make_config(precision="int8")


def test_recomputing_activations_changes_no_bit(tmp_path: Path) -> None:
    stored, again = (
        run(tmp_path / str(flag), recompute=flag, distillation=0.5).model for flag in (False, True)
    )
    if HAS_HOOKED_TRANSFORMER:
        assert_same_weights(stored, again)
    for (name, one), other in zip(stored.named_parameters(), again.parameters(), strict=True):
        # A TransformerBridge that keeps no keys and values lays them out otherwise, and rounds so.
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, msg=name)


def test_recomputing_activations_keeps_less_of_them() -> None:
    kept: dict[bool, int] = {}
    for enabled in (False, True):
        model = add_gate(make_tiny_model(n_layers=6, d_vocab=8)).train()
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            recomputed_blocks(model, enabled=enabled),
        ):
            model(torch.zeros(4, 24, dtype=torch.long)).sum()
        kept[enabled] = sum(sizes)
        assert "forward" not in vars(model.blocks[0])
    assert kept[True] < 0.5 * kept[False]


def test_a_run_goes_on_with_the_attention_it_began_with(tmp_path: Path) -> None:
    run(tmp_path / "run", attention="hooks")
    with pytest.raises(ValueError, match="attention was 'hooks' and is 'blockwise'"):
        run(tmp_path / "run", attention="auto", resume=True)
    run(tmp_path / "run", attention="hooks", resume=True)


def test_attention_that_does_not_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attention 'triton' does not work here"):
        run(tmp_path / "run", attention="triton")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # The compiler looks at what warns, and hides that itself.
def test_compiled_steps_are_those_of_the_model_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 5, "evaluate_every": 5, "control_every": 5}
    counters.clear()
    plain = run(tmp_path / "plain", **options)
    assert not counters
    result = run(tmp_path / "run", compile=True, **options)
    for (name, one), other in zip(
        plain.model.named_parameters(), result.model.parameters(), strict=True
    ):
        # Adam makes whole steps of gradients that are 0 but for rounding: those of key biases.
        if not name.endswith(("b_K", ".k._original_component.bias")):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=name)
    assert counters["frames"]["ok"] > 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000005")
    resumed = run(tmp_path / "run", compile=True, resume=True, **options)
    assert_same_weights(resumed.model, result.model)
    assert all(block.mlp._compiled_call_impl is None for block in resumed.model.blocks)
