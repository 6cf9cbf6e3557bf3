"""Post-training: the constrained loop that turns a dense model into its sparse twin.

A gate with b = 0 starts with about half of the attention edges open. Each step samples the gate,
and descends weight * edges + lambda * (CE - tau) (circuits/sparsify/loss.py). Every few steps the
deterministic gate's CE on the held-out control set, compared with the dense model's on the same
sequences, moves lambda. From time to time both are measured on the held-out selection set; the
result is the sparsest state seen there whose CE is at most tau. If there is none, the result says
so in `TrainResult.satisfied`.

    out_dir/run.json      config, data, model: what a resumed run must agree with
    out_dir/log.jsonl     one line a step
    out_dir/checkpoints/  see circuits/sparsify/checkpoint.py

The random numbers of a run come from torch's global generator, whose state is in the checkpoint,
and from the step; so a run that was killed and resumed ends with the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from circuits.gate import Density, add_gate, density_of, is_gated, record_open_edges
from circuits.gate_card import GateCard
from circuits.models import versions
from circuits.sparsify.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    best_path,
    claim_folder,
    cut_log,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.loss import (
    Multiplier,
    cross_entropy,
    distillation_loss,
    edge_penalty,
)

_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class TrainResult:
    """What post-training came to.

    Attributes:
        model: The gated model in evaluation mode, with the weights after `best_step` steps.
        satisfied: Whether its CE is at most tau. If not, no evaluated state kept the bound and
            the model is the last state of the run.
        ce: Its cross-entropy on the selection set with the deterministic gate, in nats.
        dense_ce: The dense model's cross-entropy on the same sequences, in nats.
        tau: The bound, dense_ce + slack.
        density: Its density on the selection set.
        best_step: The number of steps after which its weights were taken.
        steps: The number of steps run.
        seconds: Time spent, over all resumed parts of the run.
        data: The description of the token stream.
        config: The config of the run.
    """

    model: HookedTransformer
    satisfied: bool
    ce: float
    dense_ce: float
    tau: float
    density: Density
    best_step: int
    steps: int
    seconds: float
    data: dict[str, Any]
    config: TrainConfig

    def card(self) -> GateCard:
        """Returns what `gate.json` says of the model."""
        return GateCard(
            bias=self.config.bias,
            tau=self.tau,
            slack=self.config.slack,
            ce=self.ce,
            dense_ce=self.dense_ce,
            satisfied=self.satisfied,
            density={
                "overall": self.density.overall,
                "per_layer": self.density.per_layer.tolist(),
                "context": self.density.context,
            },
            training={
                "config": asdict(self.config),
                "data": self.data,
                "steps": self.steps,
                "best_step": self.best_step,
                "seconds": self.seconds,
            },
            versions=versions(),
        )


class TrainingInterrupted(KeyboardInterrupt):
    """The user stopped the run; its state is saved."""


def post_train(
    model: HookedTransformer,
    stream: TokenStream,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    frozen: Collection[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Returns the sparse twin of a dense model, and how well it keeps the constraint.

    The dense model is left as it is. Sets torch's random state; while it runs, in the main
    thread, Ctrl-C ends the step, saves a checkpoint and raises; a second Ctrl-C stops at once.

    Args:
        model: a dense HookedTransformer.
        stream: training and held-out sequences.
        config: the recipe.
        out_dir: a folder for log and checkpoints; new or empty unless `resume`.
        frozen: names of parameters that must keep their values.
        resume: continue from the latest checkpoint in `out_dir`.
        progress: show a progress bar.

    Raises:
        ValueError: an argument does not fit, `out_dir` holds something else, or the run to
            resume had another config, data or model.
        FloatingPointError: the loss or its gradient is not finite; no step was taken with it.
        TrainingInterrupted: Ctrl-C.
    """
    _check_arguments(model, stream, config, frozen)
    run = _Run.start(model, stream, config, Path(out_dir), frozen, resume)
    with _progress_bar(config, shown=progress) as bar, _interrupt_flag() as interrupted:
        while run.step < config.steps:
            record = run.train_step()
            if run.step % config.control_every == 0:
                record |= run.control()
            if run.step % config.evaluate_every == 0 or run.step == config.steps:
                record |= run.evaluate()
            run.write_log(record)
            bar.show(run.step, record)
            if (
                run.step % config.checkpoint_every == 0
                or run.step == config.steps
                or interrupted.is_set()
            ):
                run.save()
            if interrupted.is_set() and run.step < config.steps:
                raise TrainingInterrupted(
                    f"stopped after step {run.step} of {config.steps}; the state is saved in "
                    f"{run.out_dir}: to go on, call again with resume=True (--resume)"
                )
    return run.result()


@torch.no_grad()
def evaluate(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> tuple[float, Density]:
    """Returns CE in nats and density of a gated model with the deterministic gate."""
    with record_open_edges(model) as edges:
        ce = evaluate_ce(model, tokens)
    return ce, density_of(edges, context=tokens.shape[1])


@torch.no_grad()
def evaluate_ce(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> float:
    """Returns the mean next-token cross-entropy in nats, in evaluation mode; mode restored."""
    was_training = model.training
    model.eval()
    try:
        total = 0.0
        for rows in tokens.split(_EVALUATION_BATCH):
            rows = rows.to(model.W_E.device)
            total += cross_entropy(model(rows), rows).item() * len(rows)
    finally:
        model.train(was_training)
    return total / len(tokens)


class _Run:
    """The state of a run, and what one turn of its loop does."""

    def __init__(
        self,
        dense: HookedTransformer,
        stream: TokenStream,
        config: TrainConfig,
        out_dir: Path,
        frozen: Collection[str],
    ) -> None:
        self.config, self.stream, self.out_dir = config, stream, out_dir
        self.model: Any = add_gate(_own_copy(dense), config.bias)
        self.device = self.model.W_E.device
        self.teacher = dense if config.distillation else None
        self.parameters = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if name not in frozen
        }
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.parameters)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.control_set = stream.held_out("control", config.control_sequences)
        self.selection_set = stream.held_out("selection", config.selection_sequences)
        self.control_tau = evaluate_ce(dense, self.control_set) + config.slack
        self.dense_ce = evaluate_ce(dense, self.selection_set)
        self.tau = self.dense_ce + config.slack
        self.multiplier = Multiplier(config.lambda_start)
        self.step = 0
        self.best_step: int | None = None
        self.best_density = math.inf
        self.checkpoints = out_dir / CHECKPOINTS
        self.log_path = out_dir / "log.jsonl"
        self._seconds_before, self._started = 0.0, time.perf_counter()

    @classmethod
    def start(
        cls,
        dense: HookedTransformer,
        stream: TokenStream,
        config: TrainConfig,
        out_dir: Path,
        frozen: Collection[str],
        resume: bool,
    ) -> _Run:
        """Returns a new run, or the one in `out_dir` as its latest checkpoint has it."""
        identity = _identity(dense, stream, config, frozen)
        checkpoint = claim_folder(out_dir, identity, resume)
        run = cls(dense, stream, config, out_dir, frozen)
        torch.manual_seed(config.seed)
        if checkpoint is not None:
            run._restore(checkpoint)
        cut_log(run.log_path, run.step)
        return run

    def train_step(self) -> dict[str, Any]:
        """Takes one optimiser step and returns its line of the log."""
        config, started = self.config, time.perf_counter()
        tokens = self.stream.batch(self.step, config.batch_size).to(self.device)
        learning_rate = config.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        with record_open_edges(self.model) as edges:
            logits = self.model(tokens)
        ce = cross_entropy(logits, tokens)
        edge_loss = edge_penalty(edges.expected, edges.allowed, config.penalty)
        fidelity = ce
        if self.teacher is not None:
            with torch.no_grad():
                teacher_logits = self.teacher(tokens)
            fidelity = ce + config.distillation * distillation_loss(logits, teacher_logits)
        loss = config.edge_weight * edge_loss + self.multiplier.value * (fidelity - self.tau)
        self._check_finite("loss", loss)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.grad_clip)
        self._check_finite("gradient norm", norm)
        self.optimizer.step()
        self.step += 1
        return {
            "step": self.step,
            "sampled_ce": ce.item(),
            "expected_density": (edges.expected.sum() / edges.allowed.sum()).item(),
            "lambda": self.multiplier.value,
            "learning_rate": learning_rate,
            "gradient_norm": norm.item(),
            "tokens_per_second": tokens.numel() / (time.perf_counter() - started),
        }

    def control(self) -> dict[str, Any]:
        """Moves lambda by the control set's CE."""
        ce = evaluate_ce(self.model, self.control_set)
        violation = ce - self.control_tau + self.config.margin
        self._check_finite("control CE", torch.tensor(violation))
        self.multiplier = self.multiplier.updated(
            violation,
            rate=self.config.lambda_rate,
            decay=self.config.lambda_decay,
            low=self.config.lambda_min,
            high=self.config.lambda_max,
        )
        return {"control_ce": ce, "control_tau": self.control_tau}

    def evaluate(self) -> dict[str, Any]:
        """Measures the selection set, and keeps the weights if they are the best so far."""
        ce, density = evaluate(self.model, self.selection_set)
        self._check_finite("CE", torch.tensor(ce))
        if ce <= self.tau and density.overall < self.best_density:
            self.best_step, self.best_density = self.step, density.overall
            state = {"step": self.step, "ce": ce, "density": density.overall}
            save_checkpoint(best_path(self.checkpoints, self.step), self._weights(), state)
        return {
            "ce": ce,
            "tau": self.tau,
            "density": density.overall,
            "density_per_layer": density.per_layer.tolist(),
            "best_step": self.best_step,
        }

    def save(self) -> None:
        """Saves the state of the run, and removes checkpoints that it makes needless."""
        tensors = self._weights() | {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value
        state = {
            "step": self.step,
            "lambda": self.multiplier.value,
            "lambda_ema": self.multiplier.ema,
            "best_step": self.best_step,
            "best_density": None if self.best_step is None else self.best_density,
            "seconds": self._seconds(),
        }
        save_checkpoint(step_path(self.checkpoints, self.step), tensors, state)
        prune_checkpoints(self.checkpoints, self.step)

    def write_log(self, record: dict[str, Any]) -> None:
        """Appends one line to the log."""
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")

    def result(self) -> TrainResult:
        """Returns the result with the best weights, or the last ones if none kept the bound."""
        if self.best_step is not None:
            self._set_weights(load_checkpoint(best_path(self.checkpoints, self.best_step)))
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        self.model.eval()
        ce, density = evaluate(self.model, self.selection_set)
        return TrainResult(
            model=self.model,
            satisfied=self.best_step is not None,
            ce=ce,
            dense_ce=self.dense_ce,
            tau=self.tau,
            density=density,
            best_step=self.step if self.best_step is None else self.best_step,
            steps=self.step,
            seconds=self._seconds(),
            data=self.stream.describe(),
            config=self.config,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self._set_weights(checkpoint)
        for name, parameter in self.parameters.items():
            entries = {
                key.split("/")[1]: tensor
                for key, tensor in checkpoint.tensors.items()
                if key.startswith("optimizer/") and key.endswith(f"/{name}")
            }
            for key, tensor in entries.items():  # AdamW keeps its step count on the CPU
                entries[key] = tensor if key == "step" else tensor.to(self.device)
            self.optimizer.state[parameter] = entries
        torch.set_rng_state(checkpoint.tensors["rng/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"], self.device)
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_density = math.inf if self.best_step is None else state["best_density"]
        self.multiplier = Multiplier(state["lambda"], state["lambda_ema"])
        self._seconds_before = state["seconds"]

    def _weights(self) -> dict[str, Tensor]:
        return {f"model/{name}": parameter for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def _set_weights(self, checkpoint: Checkpoint) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(checkpoint.tensors[f"model/{name}"])

    def _check_finite(self, what: str, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        saved = sorted(self.checkpoints.glob("step_*"))
        where = f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        raise FloatingPointError(
            f"the {what} is {value.item()} at step {self.step + 1}; {where}; lower learning_rate "
            f"(now {self.config.learning_rate}) or look for bad values in the model and its data"
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started


def _check_arguments(
    model: HookedTransformer, stream: TokenStream, config: TrainConfig, frozen: Collection[str]
) -> None:
    """Refuses what cannot work before anything is written; all complaints in one error."""
    wrong = []
    if is_gated(model):
        wrong.append("the model has a gate already; post-training starts from a dense model")
    if stream.context > model.cfg.n_ctx:
        wrong.append(f"context {stream.context} is longer than the model's n_ctx {model.cfg.n_ctx}")
    unknown = sorted(set(frozen) - {name for name, _ in model.named_parameters()})
    if unknown:
        wrong.append(f"frozen names {unknown} are no parameters of the model")
    first = stream.batch(0, config.batch_size)
    if first.max().item() >= model.cfg.d_vocab:
        wrong.append(
            f"the data holds token {first.max().item()}, but the model's vocabulary has "
            f"{model.cfg.d_vocab}; use the model's own tokenizer"
        )
    if wrong:
        raise ValueError("; ".join(wrong))


def _identity(
    model: HookedTransformer, stream: TokenStream, config: TrainConfig, frozen: Collection[str]
) -> dict[str, Any]:
    """What must be equal for a run to be resumed."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "config": asdict(config),
        "data": stream.describe(),
        "model": {"weights": digest.hexdigest(), "frozen": sorted(frozen)},
    }


def _own_copy(model: HookedTransformer) -> HookedTransformer:
    """A copy to train; the tokenizer and the model's Hugging Face source are shared."""
    kept: list[Any] = [model.tokenizer, getattr(model, "hf_source", None)]
    return copy.deepcopy(model, {id(value): value for value in kept})


@contextlib.contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """Yields a flag that the first Ctrl-C sets; the second one is a KeyboardInterrupt."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def on_interrupt(*_: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """The progress bar: the latest CE and density beside lambda and the time left."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=steps)
        self._measured = ""

    def show(self, step: int, record: dict[str, Any]) -> None:
        if "ce" in record:
            self._measured = f"CE {record['ce']:.4f} (tau {record['tau']:.4f}), " + (
                f"open {record['density']:.2%}, "
            )
        text = self._measured or f"open {record['expected_density']:.1%} expected, "
        text += f"lambda {record['lambda']:.2f}"
        self._progress.update(self._task, completed=step, description=text)


@contextlib.contextmanager
def _progress_bar(config: TrainConfig, *, shown: bool) -> Iterator[_Bar]:
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown) as progress:
        yield _Bar(progress, config.steps)
