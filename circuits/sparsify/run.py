"""One post-training run: its state, what one turn of the loop does, saving and taking up again."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuits.gate.density import Density
from circuits.gate.gate import add_gate
from circuits.models.load import copy_model
from circuits.seeds import sub_seed
from circuits.sparsify.checkpoint import (
    Checkpoint,
    best_path,
    find_run,
    load_checkpoint,
    name_latest,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.evaluation import evaluate, evaluate_ce, evaluate_kl
from circuits.sparsify.identity import attention_path, circumstances, identify
from circuits.sparsify.layer_start import start_layers
from circuits.sparsify.loss import Multiplier
from circuits.sparsify.low_rank import low_rank_updates, merge_low_rank, set_updates
from circuits.sparsify.objective import Objective
from circuits.sparsify.precision import choose_precision
from circuits.sparsify.result import TrainResult
from circuits.sparsify.run_files import RunFiles
from circuits.sparsify.sharding import Sharding, clip_gradients, shard_model, whole
from circuits.sparsify.stopping import StopRequest
from circuits.sparsify.trained_weights import (
    choose_trained,
    set_optimizer,
    set_weights,
    tensors_of,
    trained_weights,
)
from circuits.sparsify.verdict import BoundWatch, check_readable
from circuits.workers import Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.models.save_adapter import LowRankUpdate


class Run:
    """The state of a run, and what one turn of its loop does."""

    def __init__(
        self,
        dense: Model,
        stream: TokenStream,
        config: TrainConfig,
        out_dir: Path,
        frozen: Collection[str],
        attention: str,
        workers: Workers,
        sharding: Sharding | None = None,
        updates: Mapping[str, LowRankUpdate] | None = None,
    ) -> None:
        self.config, self.stream, self.out_dir = config, stream, out_dir
        self.workers, self.sharding, self.attention = workers, sharding, attention
        self._dense, self._frozen = dense, frozen
        copied = copy_model(dense, share_weights=sharding is not None)
        self.model: Any = choose_trained(copied, config, frozen)
        self._by_kl = config.gate and config.bound == "kl"
        self.teacher: Any = dense if config.distillation or self._by_kl else None
        if sharding is not None:
            shard_model(self.model, sharding)
            if self.teacher is not None:
                self.teacher = shard_model(copy_model(dense, share_weights=True), sharding)
        self.weights = trained_weights(self.model)
        self.device = self.model.W_E.device
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=config.learning_rate_at(0),
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.control_set = stream.held_out("control", config.control_sequences)
        self.selection_set = stream.held_out("selection", config.selection_sequences)
        # Without a gate and updates to begin with, it still computes what the dense model does.
        control_ce = evaluate_ce(self.model, self.control_set)
        self.dense_ce = evaluate_ce(self.model, self.selection_set)
        if updates is not None:
            set_updates(self.model, updates)
        if config.gate:
            add_gate(self.model, config.bias)
        tau = self.dense_ce + config.slack if config.tau is None else config.tau
        self.slack = config.slack if config.tau is None else tau - self.dense_ce
        self.control_tau = control_ce + self.slack
        self.tau = tau if config.gate and not self._by_kl else math.inf
        self.limit = config.epsilon if self._by_kl else self.tau
        # A margin as wide as epsilon would ask for a divergence below 0.
        self.margin = min(config.margin, config.epsilon / 10) if self._by_kl else config.margin
        self.multiplier = Multiplier(config.lambda_start)
        self.objective = Objective(
            self.model, self.teacher, self.weights, config, self.limit, attention, workers,
            is_sharded=sharding is not None,
        )  # fmt: skip
        self.watch = BoundWatch()
        self.notes: list[str] = []
        self.lost: list[str] = []
        self.step = 0
        self.best_step: int | None = None
        self.best_density = math.inf
        self.files = RunFiles(out_dir, writes=workers.is_first)
        self.checkpoints = self.files.checkpoints
        self._identity: dict[str, Any] | None = None
        self._source: Mapping[str, Any] = {}
        self._look_for_best = False
        self.starts_layers = config.gate and config.layer_steps > 0
        self._seconds_before, self._started = 0.0, time.perf_counter()

    @classmethod
    def start(
        cls,
        dense: Model,
        stream: TokenStream,
        config: TrainConfig,
        out_dir: Path,
        frozen: Collection[str],
        resume: bool,
        workers: Workers,
        sharding: Sharding | None = None,
        source: Mapping[str, Any] | None = None,
        updates: Mapping[str, LowRankUpdate] | None = None,
    ) -> Run:
        """Returns a new run, or the one in `out_dir` as its latest checkpoint has it.

        Nothing is written yet.
        """
        config = config.for_width(dense.cfg.d_model)
        device = sharding.device if sharding else dense.W_E.device
        # The resolved one is what the run is known by, so that it goes on with what it began with.
        precision = workers.agree(choose_precision(config.precision, device))
        config = replace(config, precision=precision)
        attention = attention_path(dense, stream, config, sharding)
        identity = identify(dense, stream, config, frozen, attention, workers, updates)
        checkpoint = find_run(out_dir, identity, resume=resume) if workers.is_first else None
        found = workers.agree((checkpoint.path, checkpoint.lost) if checkpoint else None)
        if found is not None and checkpoint is None:
            checkpoint = replace(load_checkpoint(found[0]), lost=found[1])
        run = cls(dense, stream, config, out_dir, frozen, attention, workers, sharding, updates)
        run._identity = None if resume else identity
        run._source = source or {}
        if checkpoint is not None:
            run._restore(checkpoint)
        return run

    def check_text(self) -> None:
        """Refuses text that the dense model cannot read.

        Warns:
            UserWarning: many tokens of it are unknown to the tokenizer.

        Raises:
            ValueError: it cannot; see `check_readable`.
        """
        vocabulary, tokenizer = self._dense.cfg.d_vocab, self._dense.tokenizer
        note = check_readable(self.dense_ce, vocabulary, self.selection_set, tokenizer)
        if note is not None:
            self.notes.append(note)
            if self.workers.is_first:
                warnings.warn(note, stacklevel=3)

    def begin(self) -> None:
        """Writes what the run begins or goes on with: identity, recipe, log up to the last step."""
        start = {
            **circumstances(self.device, self.workers),
            # Of weights that are no numbers JSON has no cross-entropy; the first step says so.
            "dense_ce": self.dense_ce if math.isfinite(self.dense_ce) else None,
            "notes": self.notes,
        }
        recipe = {**self._source, **asdict(self.config)}
        last_step = -1 if self.starts_layers else self.step
        self.files.begin(self._identity, start, recipe, last_step)
        if self._look_for_best:
            self.evaluate()
            self.save()

    def start_layers(self, *, shown: bool, asked: StopRequest) -> None:
        """Trains every layer's attention by itself, and saves the state that this comes to.

        Raises:
            TrainingInterrupted: a stop was asked for; the layers that are done are saved.
        """
        with self.objective.fast():
            found = start_layers(
                self.model, self._dense, self.stream, self.config, self.checkpoints,
                shown=shown, asked=asked,
            )  # fmt: skip
        layers = {
            "layer_kl": [one.kl for one in found],
            "layer_density": [one.density for one in found],
        }
        self.starts_layers = False
        record = {"step": 0, "lambda": self.multiplier.value, **layers, **self.evaluate()}
        self.files.log(record | {"seconds": round(self._seconds(), 3)})
        self.save()

    def train_step(self) -> dict[str, Any]:
        """Takes one optimiser step and returns its line of the log."""
        config, started = self.config, time.perf_counter()
        tokens = self.stream.batch(self.step, config.batch_size).to(self.device)
        learning_rate = config.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        self.optimizer.zero_grad()
        batch = self.objective.add_gradient(tokens, self.multiplier.value, self._noise_seed)
        self._check_finite("loss", batch.loss)
        norm = clip_gradients(self.weights.values(), config.grad_clip)
        self._check_finite("gradient norm", norm.item())
        self.optimizer.step()
        self.step += 1
        gate = (
            {"expected_density": batch.expected / batch.allowed, "lambda": self.multiplier.value}
            if config.gate
            else {}
        )
        return {
            "step": self.step,
            "sampled_ce": batch.ce,
            **gate,
            "learning_rate": learning_rate,
            "gradient_norm": norm.item(),
            "tokens_per_second": tokens.numel() / (time.perf_counter() - started),
            "seconds": round(self._seconds(), 3),
        }

    def _noise_seed(self, part: int) -> int:
        """The seed of the random numbers of one part of the step's batch."""
        folded = (self.config.seed << 40) + (self.step << 12) + part
        return sub_seed(folded, f"{self.config.seed}/noise/{self.step}/{part}")

    def control(self) -> dict[str, Any]:
        """Moves lambda by how far the control set is from the bound, once it has warmed up."""
        with self.objective.fast():
            if self._by_kl:
                ce, kl, _ = self.workers.agree(
                    evaluate_kl(self.model, self.teacher, self.control_set)
                )
                measured, above = {"control_ce": ce, "control_kl": kl}, kl - self.limit
            else:
                ce = self.workers.agree(evaluate_ce(self.model, self.control_set))
                measured = {"control_ce": ce, "control_tau": self.control_tau}
                above = ce - self.control_tau
        self._check_finite(f"control {'KL' if self._by_kl else 'CE'}", above)
        self.watch = self.watch.after(self.step, above > 0)
        if self.step > self.config.lambda_warm_up * self.config.steps:
            violation = above + self.margin
            if self._by_kl:
                # A KL is never further below its bound than epsilon; nor shall it count further
                # above, or lambda would rise in one check to where it takes many to come down from.
                violation = min(violation / self.limit, 1.0)
            self.multiplier = self.multiplier.updated(
                violation,
                rate=self.config.lambda_rate,
                decay=self.config.lambda_decay,
                low=self.config.lambda_min,
                high=self.config.lambda_max,
            )
        return measured

    def evaluate(self) -> dict[str, Any]:
        """Measures the selection set, and keeps the weights if they are the best so far.

        None of a control's states is the best: its result is the last.
        """
        ce, kl, density = self.workers.agree(self._measured())
        bounded = ce if kl is None else kl
        self._check_finite("CE" if kl is None else "KL", bounded)
        if not self.config.gate:
            return {"ce": ce}
        if bounded <= self.limit and density.overall < self.best_density:
            self.best_step, self.best_density = self.step, density.overall
            state = {"step": self.step, "ce": ce, "density": density.overall}
            path = best_path(self.checkpoints, self.step)
            save_checkpoint(path, tensors_of(self.weights), state, writes=self.workers.is_first)
        bound = {"tau": self.tau} if kl is None else {"kl": kl, "epsilon": self.limit}
        return {
            "ce": ce,
            **bound,
            "density": density.overall,
            "density_per_layer": density.per_layer.tolist(),
            "best_step": self.best_step,
        }

    def _measured(self) -> tuple[float, float | None, Density]:
        """CE, KL if that is bounded, and density on the selection set."""
        with self.objective.fast():
            if self._by_kl:
                return evaluate_kl(self.model, self.teacher, self.selection_set)
            ce, density = evaluate(self.model, self.selection_set)
        return ce, None, density

    def save(self) -> None:
        """Saves the state of the run, and removes checkpoints that it makes needless."""
        state = {
            "step": self.step,
            "lambda": self.multiplier.value,
            "lambda_ema": self.multiplier.ema,
            "bound": asdict(self.watch),
            "lost": self.lost,
            "best_step": self.best_step,
            "best_density": None if self.best_step is None else self.best_density,
            "seconds": self._seconds(),
        }
        path = step_path(self.checkpoints, self.step)
        tensors = tensors_of(self.weights, self.optimizer)
        save_checkpoint(path, tensors, state, writes=self.workers.is_first)
        if self.workers.is_first:
            prune_checkpoints(self.checkpoints, self.step)

    def result(self) -> TrainResult:
        """Returns the result with the best weights, or the last ones if there are no best."""
        self.workers.agree(None)  # The first process has written the best weights.
        if self.best_step is not None:
            best = load_checkpoint(best_path(self.checkpoints, self.best_step))
            set_weights(self.weights, best.tensors)
        model = self.model if self.sharding is None else self._whole_model()
        updates = low_rank_updates(model)
        merge_low_rank(model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        model.eval()
        ce, kl, density = self._measured()
        return TrainResult(
            model=model,
            satisfied=self.best_step is not None or not self.config.gate,
            ce=ce,
            kl=kl,
            dense_ce=self.dense_ce,
            tau=self.tau,
            slack=self.slack,
            density=density,
            best_step=self.step if self.best_step is None else self.best_step,
            steps=self.step,
            seconds=self._seconds(),
            data=self.stream.describe(),
            config=self.config,
            watch=self.watch,
            notes=(*self.notes, *self.lost),
            updates=updates,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if self.config.gate and "bound" not in state:
            raise ValueError(
                f"{checkpoint.path} was written by an earlier version of circuits, which moved "
                "lambda by another rule; finish the run with that version, or start again in a new "
                "folder"
            )
        set_weights(self.weights, checkpoint.tensors)
        set_optimizer(self.optimizer, self.weights, checkpoint.tensors)
        self.starts_layers = False
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_density = math.inf if self.best_step is None else state["best_density"]
        self.multiplier = Multiplier(state["lambda"], state["lambda_ema"])
        self.watch = BoundWatch(**state.get("bound", {}))
        self.lost = list(state.get("lost", []))
        if checkpoint.lost is not None:
            self.lost.append(checkpoint.lost)
            self.best_step, self.best_density = None, math.inf
            self._look_for_best = True
        self._seconds_before = state["seconds"]

    @torch.no_grad()
    def _whole_model(self) -> Any:
        """The sharded model's weights in an ordinary one, where the dense one lies."""
        model = choose_trained(copy_model(self._dense), self.config, self._frozen)
        for name, weight in trained_weights(model).items():
            weight.copy_(whole(self.weights[name]))
        return add_gate(model, self.config.bias) if self.config.gate else model

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        raise FloatingPointError(
            f"the {what} is {value} at step {self.step + 1}; "
            f"{name_latest(self.checkpoints)}; lower learning_rate "
            f"(now {self.config.learning_rate}) or look for bad values in the model and its data"
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started
