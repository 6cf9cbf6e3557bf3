"""`circuits train`: a dense model in, its sparse twin or a control out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.console import err_console, out_console, say, usage_errors
from circuits.cli.launch import read_launch
from circuits.cli.options import Device, Seed, TrustRemoteCode, text_stream

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.sparsify.config import TrainConfig
    from circuits.sparsify.data import TokenStream
    from circuits.sparsify.result import TrainResult


def train_command(
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoints and model.")],
    model: Annotated[str, typer.Option(help="The dense model: a name or folder.")] = "dense",
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 training text; else the synthetic corpus.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Dataset to train on: a hub name, or .jsonl, .csv, .parquet, .txt."),
    ] = None,
    data_subset: Annotated[
        str | None, typer.Option(help="The hub dataset's configuration.")
    ] = None,
    data_split: Annotated[str, typer.Option(help="The part of the dataset to read.")] = "train",
    data_column: Annotated[str, typer.Option(help="The dataset's column of text.")] = "text",
    context: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2500,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 32,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a batch is run in, to need less memory.")
    ] = 1,
    precision: Annotated[
        str, typer.Option(help="What steps compute in: float32, or bfloat16 under autocast.")
    ] = "float32",
    attention: Annotated[
        str, typer.Option(help="How: auto, hooks, blockwise or triton (a GPU's kernels).")
    ] = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile MLPs and norms: faster after a first step.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations twice, to need less memory.")
    ] = False,
    lora_rank: Annotated[
        int, typer.Option(help="Train updates of this rank (LoRA); 0 for the weights themselves.")
    ] = 0,
    lora_alpha: Annotated[float, typer.Option(help="Updates are scaled by this / rank.")] = 16.0,
    lora_targets: Annotated[
        str, typer.Option(help="Weights with an update: attention, mlp or all.")
    ] = "all",
    save: Annotated[
        str,
        typer.Option(help="What is saved: auto, merged, adapter or adapter-bfloat16 (of LoRA)."),
    ] = "auto",
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. [default: 0.192 / width of the model]"),
    ] = None,
    slack: Annotated[float, typer.Option(help="Nats allowed above the dense model's CE.")] = 0.0,
    tau: Annotated[
        float | None, typer.Option(help="The bound on the CE itself, in place of --slack.")
    ] = None,
    bound: Annotated[
        str, typer.Option(help="What is bounded: ce, or kl, the divergence from the dense model.")
    ] = "ce",
    epsilon: Annotated[
        float, typer.Option(help="The bound of --bound kl on KL(dense || sparse), in nats.")
    ] = 0.02,
    penalty: Annotated[str, typer.Option(help="Edge penalty: mean, rms or log.")] = "rms",
    edge_weight: Annotated[float, typer.Option(help="Weight of the edge penalty.")] = 8.0,
    lambda_start: Annotated[
        float, typer.Option(help="First weight of the CE, or of a bounded KL.")
    ] = 1.0,
    lambda_warm_up: Annotated[
        float, typer.Option(help="Fraction of the steps before that weight moves.")
    ] = 0.0,
    lambda_rate: Annotated[float, typer.Option(help="How fast that weight follows.")] = 2.0,
    lambda_max: Annotated[float, typer.Option(help="Its upper clamp.")] = 10.0,
    ce_weight: Annotated[
        float, typer.Option(help="Weight of the CE; 0 to follow the dense model alone.")
    ] = 1.0,
    distillation: Annotated[float, typer.Option(help="Weight of KL to the dense model.")] = 0.0,
    bias: Annotated[float, typer.Option(help="Added to attention scores in the gate.")] = 0.0,
    tracker: Annotated[
        str | None, typer.Option(help="Log to tensorboard or wandb as well as to log.jsonl.")
    ] = None,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Share out the model too over the processes; it is loaded on the CPU."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Make a control: train on, without a gate.")
    ] = False,
    twins: Annotated[
        int,
        typer.Option(
            help="Twins (or controls) to train, of seeds --seed and up, into OUT/seed0 and so on."
        ),
    ] = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Make attention sparse: train a dense model into its sparse twin.

    Under accelerate launch or torchrun, several processes share the batches.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.choices import SAVED_AS, check_choice
        from circuits.models.load import checked_device
        from circuits.sparsify.checkpoint import check_folder
        from circuits.sparsify.config import TrainConfig
        from circuits.sparsify.folder_lock import locked_folder
        from circuits.sparsify.sharding import why_not_sharded
        from circuits.sparsify.trackers import check_tracker

        config = TrainConfig(
            gate=not control,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            precision=precision,
            attention=attention,
            compile=compile_,
            recompute=recompute,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            learning_rate=learning_rate,
            bias=bias,
            edge_weight=edge_weight,
            penalty=penalty,  # type: ignore[arg-type]
            slack=slack,
            tau=tau,
            bound=bound,
            epsilon=epsilon,
            lambda_start=lambda_start,
            lambda_warm_up=lambda_warm_up,
            lambda_rate=lambda_rate,
            lambda_max=lambda_max,
            ce_weight=ce_weight,
            distillation=distillation,
            seed=seed,
        )
        check_tracker(tracker)
        check_choice("save", save, SAVED_AS)
        if save.startswith("adapter") and not lora_rank:
            raise ValueError(f"--save {save} needs low-rank updates; give --lora-rank as well")
        # Said before the model is loaded, which may take long; post_train asks again.
        if shard and (reason := why_not_sharded(launch.count)):
            raise ValueError(reason)
        if twins < 1:
            raise ValueError(f"--twins is {twins}; train at least 1")
        if text is not None and data is not None:
            raise ValueError("give --text or --data, not both")
        device = str(checked_device(launch.own_device(device)))
        configs = [replace(config, seed=seed + number) for number in range(twins)]
        if twins == 1 and launch.is_first:
            check_folder(out, resume=resume)
    # From here on, so that a second command waits for no model before it is refused.
    with locked_folder(out) if launch.is_first else nullcontext(), _said_warnings():
        with usage_errors():
            from circuits.models.load import load_model

            # A model to shard may be too big for one GPU.
            dense = load_model(
                model, device="cpu" if shard else device, trust_remote_code=trust_remote_code
            )
            streams = [
                _stream(text, data, data_subset, data_split, data_column, dense, context, one.seed)
                for one in configs
            ]
            save = _saved_as(save, config, dense)
        doing = f"training {model} on without a gate" if control else f"post-training {model}"
        failures = []
        for one, stream in zip(configs, streams, strict=True):
            folder = out if twins == 1 else out / f"seed{one.seed}"
            err_console.print(f"{doing}, on {device}, seed {one.seed}, into {folder}")
            begun = resume and (twins == 1 or folder.exists())
            failures += _make_model(
                dense, stream, one, folder, begun, tracker, save,
                saves=launch.is_first, shard_on=device if shard else None,
            )  # fmt: skip
    if failures:
        raise RuntimeError("; ".join(failures))


def _stream(
    text: Path | None,
    data: str | None,
    subset: str | None,
    split: str,
    column: str,
    dense: Model,
    context: int,
    seed: int,
) -> TokenStream:
    """The sequences that the options ask for."""
    from circuits.sparsify.data import CorpusStream
    from circuits.sparsify.dataset_stream import DatasetStream

    tokenizer = dense.tokenizer
    if data is not None:
        return DatasetStream(
            data, tokenizer, context=context, seed=seed, column=column, subset=subset, split=split
        )
    if text is not None:
        return text_stream(text, tokenizer, context, seed)
    return CorpusStream(tokenizer, context=context, seed=seed)


def _saved_as(save: str, config: TrainConfig, dense: Model) -> str:
    """What is saved, with `auto` decided; what cannot be saved is refused before training."""
    from circuits.models.save_adapter import check_adapter
    from circuits.sparsify.low_rank import updated_weights

    # An adapter of a folder is lost when the folder is moved.
    name = getattr(getattr(dense, "hf_source", None), "name", "")
    if save == "auto" and (not config.lora_rank or not name or Path(name).is_absolute()):
        return "merged"
    if save == "merged":
        return save
    try:
        check_adapter(dense, updated_weights(dense, config.lora_targets))
    except ValueError as error:
        if save != "auto":
            raise
        say(f"the merged model will be saved: {error}")
        return "merged"
    return "adapter" if save == "auto" else save


@contextmanager
def _said_warnings() -> Iterator[None]:
    """Says what the package warns of inside the context, a line each."""
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say_it(
            message: Warning | str, category: type[Warning], filename: str, *place: Any
        ) -> None:
            if category is UserWarning and Path(filename).is_relative_to(package):
                say(f"warning: {message}")
            else:
                show(message, category, filename, *place)

        warnings.showwarning = say_it
        yield


def _make_model(
    dense: Model,
    stream: TokenStream,
    config: TrainConfig,
    out: Path,
    resume: bool,
    tracker: str | None,
    save: str,
    *,
    saves: bool,
    shard_on: str | None,
) -> list[str]:
    """Trains a model and saves it; returns why it is not a success, if so."""
    import torch

    from circuits.models.save_adapter import save_adapter
    from circuits.models.saving import save_model
    from circuits.sparsify.checkpoint import CHECKPOINTS, resumable_write
    from circuits.sparsify.train import TrainingInterrupted, post_train

    try:
        result = post_train(
            dense,
            stream,
            config,
            out,
            resume=resume,
            tracker=tracker,
            shard_on=shard_on,
        )
    except TrainingInterrupted as stop:
        say(str(stop))
        raise typer.Exit(stop.exit_code) from None
    out_console.print(_summary(result), soft_wrap=True)
    for warning in result.warnings:
        say(f"warning: {warning}")
    if saves:
        card = result.card() if config.gate else None
        with resumable_write(out / "model", out / CHECKPOINTS):
            if save == "merged":
                save_model(result.model, out / "model", gate=card)
            else:
                dtype = torch.bfloat16 if save == "adapter-bfloat16" else torch.float32
                save_adapter(dense, result.updates, out / "model", gate=card, dtype=dtype)
    what = "" if save == "merged" else f" (an adapter of {dense.hf_source.name})"  # pyright: ignore
    out_console.print(f"written to {out / 'model'}{what}", soft_wrap=True)
    return [f"{out / 'model'}: {failure}" for failure in result.failures]


def _summary(result: TrainResult) -> str:
    """What a run came to, in a line."""
    if not result.config.gate:
        return f"dense CE {result.dense_ce:.4f}, control CE {result.ce:.4f} nats"
    from circuits.sparsify.result import format_density

    layers = ", ".join(map(format_density, result.density.per_layer.tolist()))
    if result.is_by_kl:
        held = f"KL {result.kl:.4f}, bound {result.config.epsilon:g} nats"
    else:
        held = f"bound {result.tau:.4f} nats"
    watched = result.watch.in_words("KL" if result.is_by_kl else "CE")
    return (
        f"dense CE {result.dense_ce:.4f}, sparse CE {result.ce:.4f}, {held}; "
        f"{format_density(result.density.overall)} of edges open at T = {result.density.context} "
        f"(layers: {layers}), weights of step {result.best_step}; {watched}"
    )
