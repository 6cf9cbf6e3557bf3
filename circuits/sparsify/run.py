"""One post-training run: its state, what one turn of the loop does, saving and taking up again."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.fused import choose_path, fused_attention
from circuits.gate import add_gate
from circuits.models import copy_model
from circuits.open_edges import OpenEdges, record_open_edges
from circuits.seeds import sub_seed
from circuits.sparsify.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    best_path,
    claim_folder,
    cut_log,
    load_checkpoint,
    name_latest,
    prune_checkpoints,
    resumable_write,
    save_checkpoint,
    step_path,
)
from circuits.sparsify.compiled import compile_parts, compiled
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.evaluation import evaluate, evaluate_ce
from circuits.sparsify.loss import Multiplier, cross_entropy, distillation_loss, edge_penalty
from circuits.sparsify.low_rank import merge_low_rank
from circuits.sparsify.recompute import recomputed_blocks
from circuits.sparsify.result import TrainResult
from circuits.sparsify.sharding import Sharding, clip_gradients, shard_model, whole
from circuits.sparsify.trained_weights import (
    choose_trained,
    set_optimizer,
    set_weights,
    tensors_of,
    trained_weights,
)
from circuits.workers import Workers

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Run:
    """The state of a run, and what one turn of its loop does."""

    def __init__(
        self,
        dense: HookedTransformer,
        stream: TokenStream,
        config: TrainConfig,
        out_dir: Path,
        frozen: Collection[str],
        attention: str,
        workers: Workers,
        sharding: Sharding | None = None,
    ) -> None:
        self.config, self.stream, self.out_dir = config, stream, out_dir
        self.workers, self.sharding, self.attention = workers, sharding, attention
        self._dense, self._frozen = dense, frozen
        copied = copy_model(dense, share_weights=sharding is not None)
        self.model: Any = choose_trained(copied, config, frozen)
        self.teacher: Any = dense if config.distillation else None
        if sharding is not None:
            shard_model(self.model, sharding)
            if self.teacher is not None:
                self.teacher = shard_model(copy_model(dense, share_weights=True), sharding)
        self.weights = trained_weights(self.model)
        self._compiled = compile_parts(self.model) if config.compile else []
        self.device = self.model.W_E.device
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=config.learning_rate_at(0),
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.control_set = stream.held_out("control", config.control_sequences)
        self.selection_set = stream.held_out("selection", config.selection_sequences)
        control_ce = evaluate_ce(self.model, self.control_set)
        self.dense_ce = evaluate_ce(self.model, self.selection_set)
        if config.gate:  # until here the model computes what the dense one does
            add_gate(self.model, config.bias)
        tau = self.dense_ce + config.slack if config.tau is None else config.tau
        self.slack = config.slack if config.tau is None else tau - self.dense_ce
        self.control_tau = control_ce + self.slack
        self.tau = tau if config.gate else math.inf
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
        workers: Workers,
        sharding: Sharding | None = None,
    ) -> Run:
        """Returns a new run, or the one in `out_dir` as its latest checkpoint has it."""
        config = config.for_width(dense.cfg.d_model)
        attention = _attention_path(dense, stream, config, sharding)
        identity = _identity(dense, stream, config, frozen, attention, workers)
        checkpoint = claim_folder(out_dir, identity, resume) if workers.is_first else None
        path = workers.agree(checkpoint.path if checkpoint else None)
        if path is not None and checkpoint is None:
            checkpoint = load_checkpoint(path)
        run = cls(dense, stream, config, out_dir, frozen, attention, workers, sharding)
        if checkpoint is not None:
            run._restore(checkpoint)
        if workers.is_first:
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
        self.optimizer.zero_grad()
        parts = list(tokens.chunk(config.accumulate * self.workers.count))
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with self._fused(), compiled(self._compiled):
            for number, rows in self.workers.own(parts):
                torch.manual_seed(self._noise_seed(number))
                sums += self._backward(rows, len(parts))
        self.workers.add_up([sums])
        if self.sharding is None:  # a sharded model's gradients are sums already
            self.workers.add_up(p.grad for p in self.weights.values() if p.grad is not None)
        ce, expected, allowed = sums.tolist()
        norm = clip_gradients(self.weights.values(), config.grad_clip)
        self._check_finite("gradient norm", norm)
        self.optimizer.step()
        self.step += 1
        gate = (
            {"expected_density": expected / allowed, "lambda": self.multiplier.value}
            if config.gate
            else {}
        )
        return {
            "step": self.step,
            "sampled_ce": ce / len(parts),
            **gate,
            "learning_rate": learning_rate,
            "gradient_norm": norm.item(),
            "tokens_per_second": tokens.numel() / (time.perf_counter() - started),
        }

    def _noise_seed(self, part: int) -> int:
        """The seed of the random numbers of one part of the step's batch."""
        folded = (self.config.seed << 40) + (self.step << 12) + part
        return sub_seed(folded, f"{self.config.seed}/noise/{self.step}/{part}")

    def _backward(self, tokens: Int[Tensor, "batch pos"], n_parts: int) -> Float[Tensor, 3]:
        """Adds the gradient of a part of the batch; returns its CE, expected and allowed edges."""
        config = self.config
        recorded = record_open_edges(self.model) if config.gate else nullcontext()
        with (
            self._autocast(),
            # Else the graph would hold weights whole: rearranged, cast, or with updates added.
            recomputed_blocks(self.model, enabled=config.recompute or self.sharding is not None),
            recorded as edges,
        ):
            logits = self.model(tokens)
        ce = cross_entropy(logits, tokens)
        fidelity = config.ce_weight * ce
        if self.teacher is not None:
            with torch.no_grad(), self._autocast():
                teacher_logits = self.teacher(tokens)
            fidelity = fidelity + config.distillation * distillation_loss(logits, teacher_logits)
        loss = self._loss(fidelity, edges)
        self._check_finite("loss", loss)
        (loss / n_parts).backward()
        counts = (edges.expected.sum(), edges.allowed.sum()) if edges else ce.new_zeros(2)
        return torch.stack([one.double() for one in (ce, *counts)]).detach()

    def _loss(self, fidelity: Float[Tensor, ""], edges: OpenEdges | None) -> Float[Tensor, ""]:
        """What a step descends: under a gate edges and lambda, for a control the fidelity alone."""
        if edges is None:
            return fidelity
        penalty = edge_penalty(edges.expected, edges.allowed, self.config.penalty)
        return self.config.edge_weight * penalty + self.multiplier.value * (fidelity - self.tau)

    def _fused(self) -> AbstractContextManager[None]:
        return fused_attention(self.model, self.attention)

    def _autocast(self) -> torch.autocast:
        half = self.config.precision == "bfloat16"
        # The cache holds every weight in half precision until the context ends.
        cached = self.sharding is None
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=cached)

    def control(self) -> dict[str, Any]:
        """Moves lambda by the control set's CE, once it has warmed up."""
        with self._fused():
            ce = self.workers.agree(evaluate_ce(self.model, self.control_set))
        violation = ce - self.control_tau + self.config.margin
        self._check_finite("control CE", torch.tensor(violation))
        if self.step > self.config.lambda_warm_up * self.config.steps:
            self.multiplier = self.multiplier.updated(
                violation,
                rate=self.config.lambda_rate,
                decay=self.config.lambda_decay,
                low=self.config.lambda_min,
                high=self.config.lambda_max,
            )
        return {"control_ce": ce, "control_tau": self.control_tau}

    def evaluate(self) -> dict[str, Any]:
        """Measures the selection set, and keeps the weights if they are the best so far.

        None of a control's states is the best: its result is the last.
        """
        with self._fused():
            ce, density = self.workers.agree(evaluate(self.model, self.selection_set))
        self._check_finite("CE", torch.tensor(ce))
        if not self.config.gate:
            return {"ce": ce}
        if ce <= self.tau and density.overall < self.best_density:
            self.best_step, self.best_density = self.step, density.overall
            state = {"step": self.step, "ce": ce, "density": density.overall}
            path = best_path(self.checkpoints, self.step)
            save_checkpoint(path, tensors_of(self.weights), state, writes=self.workers.is_first)
        return {
            "ce": ce,
            "tau": self.tau,
            "density": density.overall,
            "density_per_layer": density.per_layer.tolist(),
            "best_step": self.best_step,
        }

    def save(self) -> None:
        """Saves the state of the run, and removes checkpoints that it makes needless."""
        state = {
            "step": self.step,
            "lambda": self.multiplier.value,
            "lambda_ema": self.multiplier.ema,
            "best_step": self.best_step,
            "best_density": None if self.best_step is None else self.best_density,
            "seconds": self._seconds(),
        }
        path = step_path(self.checkpoints, self.step)
        tensors = tensors_of(self.weights, self.optimizer)
        save_checkpoint(path, tensors, state, writes=self.workers.is_first)
        if self.workers.is_first:
            prune_checkpoints(self.checkpoints, self.step)

    def write_log(self, record: dict[str, Any]) -> None:
        """Appends one line to the log."""
        if not self.workers.is_first:
            return
        with (
            resumable_write(self.log_path, self.checkpoints),
            self.log_path.open("a", encoding="utf-8") as log,
        ):
            log.write(json.dumps(record) + "\n")

    def result(self) -> TrainResult:
        """Returns the result with the best weights, or the last ones if there are no best."""
        self.workers.agree(None)  # The first process has written the best weights.
        if self.best_step is not None:
            best = load_checkpoint(best_path(self.checkpoints, self.best_step))
            set_weights(self.weights, best.tensors)
        model = self.model if self.sharding is None else self._whole_model()
        merge_low_rank(model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        model.eval()
        with self._fused():
            ce, density = evaluate(self.model, self.selection_set)
        return TrainResult(
            model=model,
            satisfied=self.best_step is not None or not self.config.gate,
            ce=ce,
            dense_ce=self.dense_ce,
            tau=self.tau,
            slack=self.slack,
            density=density,
            best_step=self.step if self.best_step is None else self.best_step,
            steps=self.step,
            seconds=self._seconds(),
            data=self.stream.describe(),
            config=self.config,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        set_weights(self.weights, checkpoint.tensors)
        set_optimizer(self.optimizer, self.weights, checkpoint.tensors)
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_density = math.inf if self.best_step is None else state["best_density"]
        self.multiplier = Multiplier(state["lambda"], state["lambda_ema"])
        self._seconds_before = state["seconds"]

    @torch.no_grad()
    def _whole_model(self) -> Any:
        """The sharded model's weights in an ordinary one, where the dense one lies."""
        model = choose_trained(copy_model(self._dense), self.config, self._frozen)
        for name, weight in trained_weights(model).items():
            weight.copy_(whole(self.weights[name]))
        return add_gate(model, self.config.bias) if self.config.gate else model

    def _check_finite(self, what: str, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        raise FloatingPointError(
            f"the {what} is {value.item()} at step {self.step + 1}; "
            f"{name_latest(self.checkpoints)}; lower learning_rate "
            f"(now {self.config.learning_rate}) or look for bad values in the model and its data"
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started


def _attention_path(
    dense: HookedTransformer, stream: TokenStream, config: TrainConfig, sharding: Sharding | None
) -> str:
    if not config.gate:
        return "hooks"
    return choose_path(
        dense,
        config.attention,
        stream.context,
        device=sharding.device if sharding else None,
        autocast=config.precision == "bfloat16",
    )


def _identity(
    model: HookedTransformer,
    stream: TokenStream,
    config: TrainConfig,
    frozen: Collection[str],
    attention: str,
    workers: Workers,
) -> dict[str, Any]:
    """What must be equal for a run to be resumed."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    # The parts of a batch are the same however many processes share them, and steps are the same
    # bits only with the same way of attention.
    same = {"accumulate": config.accumulate * workers.count, "attention": attention}
    return {
        "config": asdict(config) | same,
        "data": stream.describe(),
        "model": {"weights": digest.hexdigest(), "frozen": sorted(frozen)},
    }
