"""Post-training: the constrained loop that turns a dense model into its sparse twin, or a control.

A gate with b = 0 starts with about half of the attention edges open. Each step samples the gate,
and descends weight * edges + lambda * (CE - tau) (circuits/sparsify/loss.py). Every few steps the
deterministic gate's CE on the held-out control set, compared with the dense model's on the same
sequences, moves lambda. From time to time both are measured on the held-out selection set; the
result is the sparsest state seen there whose CE is at most tau. If there is none, the result says
so in `TrainResult.satisfied`. Where KL(dense || sparse) is bounded (`TrainConfig.bound`), it takes
CE's part in all of that, and epsilon tau's.

Post-training changes a model in two ways: it shuts attention edges, and it trains on. A difference
between the dense model and its sparse twin is an effect of sparsity only if the second of these
alone does not bring it about. The control (`TrainConfig.gate` False) tells: the dense model after
the same batches and as many steps of the same optimiser and schedule, on the CE alone. It has no
bound to keep and nothing to shut, so that no state is the sparsest: its result is the last one.

    out_dir/run.json      config, data, model: what a resumed run must agree with; where it was
                          begun; in the end what it came to, or why it stopped
    out_dir/recipe.toml   config and source: `circuits train --config` makes the run again
    out_dir/log.jsonl     one line a step
    out_dir/training.html, summary.txt   what came of it, or has come of it so far, made from these
    out_dir/checkpoints/  see circuits/sparsify/checkpoint.py

The random numbers of a run come from its seed, the step and the part of the batch; so a run that
was killed and resumed ends with the same bits, and several processes
(circuits/workers.py) take the same steps as one.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuits.gate.gate import is_gated
from circuits.gate.top_k import is_top_k
from circuits.models.saving import check_trainable, frozen_parameters
from circuits.sparsify.checkpoint import check_folder
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.evaluation import evaluate, evaluate_ce
from circuits.sparsify.folder_lock import locked_folder
from circuits.sparsify.progress import Shown, shown_run
from circuits.sparsify.result import TrainResult
from circuits.sparsify.run import Run
from circuits.sparsify.sharding import Sharding, views_are_read_only, why_not_sharded
from circuits.sparsify.stopping import StopRequest, TrainingInterrupted, stop_requests
from circuits.sparsify.trackers import Tracker, check_tracker, open_tracker
from circuits.workers import Workers, join_workers

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.models.save_adapter import LowRankUpdate


__all__ = [
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "evaluate",
    "evaluate_ce",
    "post_train",
]


def post_train(
    model: Model,
    stream: TokenStream,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    frozen: Collection[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    tracker: str | None = None,
    shard_on: str | torch.device | None = None,
    source: Mapping[str, Any] | None = None,
    updates: Mapping[str, LowRankUpdate] | None = None,
) -> TrainResult:
    """Returns the sparse twin of a dense model, and how well it keeps the constraint.

    If `config.gate` is False, the control: a dense model in its last state. The model that is given
    stays as it is. Under `accelerate launch` or `torchrun` every process calls this alike, and the
    first one writes; all return the result. The folder is locked, so that no other run gets into
    it. Sets torch's random state; while it runs, in the main thread, Ctrl-C or SIGTERM ends the
    step, saves a checkpoint and raises; a second Ctrl-C stops at once.

    What the result is worth is said in `TrainResult.failures` and `TrainResult.warnings`, which
    also stand in run.json and on the model's card.

    With `shard_on` each process holds a part of the weights, their gradients and the optimiser's
    state (circuits/sparsify/sharding.py). The run is the same one but for rounding, and can be
    resumed with or without. `model` stays whole where it is, best on the CPU, and so is the
    result's.

    Args:
        model: a dense HookedTransformer.
        stream: training and held-out sequences.
        config: the recipe.
        out_dir: a folder for log and checkpoints; new or empty unless `resume`.
        frozen: names of parameters that must keep their values; by default those that have no
            place in a Hugging Face model, so that `save_model` takes the result. A model that
            cannot be saved at all, since it does not come from a Hugging Face model, needs them
            given, such as () to train everything.
        resume: continue from the latest checkpoint in `out_dir`.
        progress: show on stderr how far it is: a bar in a terminal, else a line for each
            evaluation and, some seconds apart, for checks of lambda.
        tracker: `tensorboard` or `wandb` to log there as well.
        shard_on: share out the model over the processes, of which there must be several: this
            process's device for its part.
        source: what `circuits train` needs besides the config to make the run again, such as
            `{"model": "gpt2", "context": 512}`; stands with the config in recipe.toml.
        updates: low-rank updates to begin with, such as an earlier twin's
            (`circuits.models.adapter_updates.read_updates`), of the rank that is trained.

    Warns:
        UserWarning: the tokenizer does not know many of the text's words, or checkpoints are
            damaged.

    Raises:
        ValueError: an argument does not fit, what is trained could not be saved, the dense model
            cannot read the text, `out_dir` holds something else, or the run to resume had another
            config, data or model.
        FolderInUseError: another run is at work in `out_dir`.
        FloatingPointError: the loss or its gradient is not finite; no step was taken with it.
        OSError: a checkpoint or the log cannot be written, such as on a full disk; what was saved
            before is whole, and `resume` goes on from it to the bits of a run that did not stop.
        TrainingInterrupted: Ctrl-C or SIGTERM.
    """
    check_tracker(tracker)
    device = model.W_E.device if shard_on is None else torch.device(shard_on)
    workers = join_workers(device)
    sharding = None if shard_on is None else Sharding(device, workers.count)
    out_dir = Path(out_dir)
    _check_arguments(model, stream, config, frozen, workers, sharding, updates)
    frozen = _checked_frozen(model, config, frozen)
    if workers.is_first:
        check_folder(out_dir, resume=resume)
    with locked_folder(out_dir) if workers.is_first else nullcontext():
        run = Run.start(
            model, stream, config, out_dir, frozen, resume, workers, sharding, source, updates
        )
        run.check_text()
        try:
            run.begin()
            _train(run, shown=progress, tracker=tracker)
            result = run.result()
        except BaseException as error:
            run.files.stop(run.step, _why_stopped(error))
            raise
        run.files.end(result.summary())
    return result


def _why_stopped(error: BaseException) -> str:
    """What the page says of a run that ends by an error."""
    if isinstance(error, TrainingInterrupted):
        return f"{signal.Signals(error.signal).name}; the state is saved"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the state of the last checkpoint is saved"
    return str(error) or type(error).__name__


def _train(run: Run, *, shown: bool, tracker: str | None) -> None:
    """Takes the steps that are left.

    Raises:
        TrainingInterrupted: a signal stopped it; the state is saved.
    """
    config, workers = run.config, run.workers
    shown = shown and workers.is_first
    with (
        open_tracker(tracker if workers.is_first else None, run.out_dir, config) as further,
        stop_requests() as asked,
        views_are_read_only() if run.sharding else nullcontext(),
    ):
        if run.starts_layers:
            run.start_layers(shown=shown, asked=asked)
        with shown_run(config, done=run.step, shown=shown) as told:
            _take_steps(run, told, further, asked)


def _take_steps(run: Run, told: Shown, further: Tracker, asked: StopRequest) -> None:
    """Takes the steps that are left.

    Raises:
        TrainingInterrupted: a signal stopped it; the state is saved.
    """
    config, workers = run.config, run.workers
    while run.step < config.steps:
        record = run.train_step()
        if config.gate and run.step % config.control_every == 0:
            record |= run.control()
        if run.step % config.evaluate_every == 0 or run.step == config.steps:
            record |= run.evaluate()
        run.files.log(record)
        further.log(record)
        told.show(run.step, record)
        stopped_by = workers.greatest(asked.signal)
        if run.step % config.checkpoint_every == 0 or run.step == config.steps or stopped_by:
            run.save()
            run.files.show()
        if stopped_by and run.step < config.steps:
            raise TrainingInterrupted(
                f"stopped after step {run.step} of {config.steps}; the state is saved in "
                f"{run.out_dir}: to go on, call again with resume=True (--resume)",
                stopped_by,
            )


def _check_arguments(
    model: Model,
    stream: TokenStream,
    config: TrainConfig,
    frozen: Collection[str] | None,
    workers: Workers,
    sharding: Sharding | None,
    updates: Mapping[str, LowRankUpdate] | None,
) -> None:
    """Refuses what cannot work before anything is written; all complaints in one error."""
    wrong = []
    if sharding and (reason := why_not_sharded(workers.count)):
        wrong.append(reason)
    if sharding and config.compile:
        wrong.append("what is sharded cannot be compiled; leave one of the two away")
    if config.cuda_graph and (reason := _why_no_graph(config, model.W_E.device, workers)):
        wrong.append(f"no CUDA graph of a step can be made {reason}; leave cuda_graph away")
    if updates is not None and not config.lora_rank:
        wrong.append("there are updates to begin with, but lora_rank is 0; give their rank")
    if updates is not None and sharding:
        wrong.append("a model that is shared out cannot begin with updates; train in one process")
    if updates is not None and config.gate and config.layer_steps:
        wrong.append("layers are started from nothing; leave layer_steps or the updates away")
    if config.gate and config.layer_steps and workers.count > 1:
        wrong.append(
            f"layer_steps is {config.layer_steps}, but layers are started in one process only; set "
            "it to 0, or train in one process"
        )
    if is_gated(model):
        wrong.append("the model has a gate already; post-training starts from a dense model")
    if is_top_k(model):
        wrong.append("the model keeps its highest scores only (add_top_k) and could not be saved")
    if stream.context > model.cfg.n_ctx:
        wrong.append(f"context {stream.context} is longer than the model's n_ctx {model.cfg.n_ctx}")
    unknown = sorted(set(frozen or ()) - {name for name, _ in model.named_parameters()})
    if unknown:
        wrong.append(f"frozen names {unknown} are not parameters of the model")
    n_parts = config.accumulate * workers.count
    if config.batch_size % n_parts:
        wrong.append(
            f"batch_size {config.batch_size} cannot be shared by {workers.count} processes with "
            f"accumulate = {config.accumulate}; make it a multiple of {n_parts}"
        )
    first = stream.batch(0, config.batch_size)
    if first.max().item() >= model.cfg.d_vocab:
        wrong.append(
            f"the data holds token {first.max().item()}, but the model's vocabulary has "
            f"{model.cfg.d_vocab}; use the model's own tokenizer"
        )
    if wrong:
        raise ValueError("; ".join(wrong))


def _why_no_graph(config: TrainConfig, device: torch.device, workers: Workers) -> str | None:
    """Why a step's gradients cannot be recorded, or None."""
    if device.type != "cuda":
        return f"on {device}, only on a CUDA GPU"
    if workers.count > 1:
        return "in several processes"
    if config.accumulate > 1:
        return f"with accumulate = {config.accumulate}"
    if config.compile or config.recompute:
        return "of blocks that are compiled or recomputed"
    # Other ways draw the seeds of their noise in Python, which a recorded step does not run.
    if config.gate and config.attention not in ("auto", "hooks"):
        return f"with attention {config.attention!r}, only with hooks"
    return None


def _checked_frozen(
    model: Model, config: TrainConfig, frozen: Collection[str] | None
) -> Collection[str]:
    """Returns what is frozen, so that what is trained can be saved where the model itself can.

    Raises:
        ValueError: it could not be saved.
    """
    if frozen is None:
        try:
            return frozen_parameters(model)
        except ValueError as error:
            raise ValueError(
                f"{error}; to train it all the same and keep the result in memory, give frozen=()"
            ) from None
    # Low-rank updates are on matrices only, which all have their place.
    if getattr(model, "hf_source", None) is not None and not config.lora_rank:
        check_trainable(model, frozen)
    return frozen
