"""`circuits train`: a dense model in, its sparse twin or a control out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.choices import SAVED_AS
from circuits.cli.config_options import with_config_options
from circuits.cli.console import err_console, out_console, said_warnings, say, usage_errors
from circuits.cli.launch import read_launch
from circuits.cli.options import Device, TrustRemoteCode, text_stream
from circuits.numbers import percent
from circuits.settings import AT_LEAST_1, complaints, one_of, setting
from circuits.sparsify.config import TrainConfig

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.models.save_adapter import LowRankUpdate
    from circuits.sparsify.data import TokenStream
    from circuits.sparsify.result import TrainResult


INPUT = "Model, data and result"


@dataclass(frozen=True)
class TrainJob:
    """What a recipe holds besides a run's `TrainConfig`."""

    model: str = setting("dense", INPUT, "The dense model: a name or folder.")
    begin_with: str | None = setting(
        None,
        INPUT,
        "An adapter of that model to begin with, such as an earlier twin's, of the same rank.",
    )
    text: str | None = setting(None, INPUT, "UTF-8 training text; else the synthetic corpus.")
    data: str | None = setting(
        None, INPUT, "Dataset to train on: a hub name, or .jsonl, .csv, .parquet, .txt."
    )
    data_subset: str | None = setting(None, INPUT, "The hub dataset's configuration.")
    data_split: str = setting("train", INPUT, "The part of the dataset to read.")
    data_column: str = setting("text", INPUT, "The dataset's column of text.")
    context: int = setting(128, INPUT, "Tokens per sequence.", AT_LEAST_1)
    save: str = setting(
        "auto", INPUT, "What is saved; an adapter is of LoRA alone.", one_of(SAVED_AS)
    )

    def __post_init__(self) -> None:
        wrong = [*complaints(self)]
        if self.text is not None and self.data is not None:
            wrong.append("give text or data, not both (--text, --data)")
        if wrong:
            raise ValueError("; ".join(wrong))


@with_config_options
def train_command(
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoints and model.")],
    job: TrainJob,
    config: TrainConfig,
    twins: Annotated[
        int,
        typer.Option(
            help="Twins (or controls) to train, of seeds --seed and up, into OUT/seed0 and so on."
        ),
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tracker: Annotated[
        str | None, typer.Option(help="Log to tensorboard or wandb as well as to log.jsonl.")
    ] = None,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Share out the model too over the processes; it is loaded on the CPU."
        ),
    ] = False,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Make attention sparse: train a dense model into its sparse twin.

    Under accelerate launch or torchrun, several processes share the batches.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.models.load import checked_device
        from circuits.sparsify.checkpoint import check_folder
        from circuits.sparsify.folder_lock import locked_folder
        from circuits.sparsify.sharding import why_not_sharded
        from circuits.sparsify.trackers import check_tracker

        check_tracker(tracker)
        if job.save.startswith("adapter") and not config.lora_rank:
            raise ValueError(f"--save {job.save} needs low-rank updates; give --lora-rank as well")
        # Said before the model is loaded, which may take long; post_train asks again.
        if shard and (reason := why_not_sharded(launch.count)):
            raise ValueError(reason)
        if twins < 1:
            raise ValueError(f"--twins is {twins}; train at least 1")
        device = str(checked_device(launch.own_device(device)))
        configs = [replace(config, seed=config.seed + number) for number in range(twins)]
        if twins == 1 and launch.is_first:
            check_folder(out, resume=resume)
    # From here on, so that a second command waits for no model before it is refused.
    with locked_folder(out) if launch.is_first else nullcontext(), said_warnings():
        with usage_errors():
            from circuits.models.load import load_model

            # A model to shard may be too big for one GPU.
            dense = load_model(
                job.model, device="cpu" if shard else device, trust_remote_code=trust_remote_code
            )
            streams = [_stream(job, dense, each.seed) for each in configs]
            save = _saved_as(job.save, config, dense)
            updates = _updates(job.begin_with, config, dense)
        doing = (
            f"post-training {job.model}"
            if config.gate
            else f"training {job.model} on without a gate"
        )
        failures = []
        for each, stream in zip(configs, streams, strict=True):
            folder = out if twins == 1 else out / f"seed{each.seed}"
            err_console.print(f"{doing}, on {device}, seed {each.seed}, into {folder}")
            begun = resume and (twins == 1 or folder.exists())
            failures += _make_model(
                dense, stream, job, each, folder, begun, tracker, save, updates,
                saves=launch.is_first, shard_on=device if shard else None,
            )  # fmt: skip
    if failures:
        raise RuntimeError("; ".join(failures))


def _stream(job: TrainJob, dense: Model, seed: int) -> TokenStream:
    """The sequences that the recipe asks for."""
    from circuits.sparsify.data import CorpusStream
    from circuits.sparsify.dataset_stream import DatasetStream

    tokenizer, context = dense.tokenizer, job.context
    if job.data is not None:
        return DatasetStream(
            job.data,
            tokenizer,
            context=context,
            seed=seed,
            column=job.data_column,
            subset=job.data_subset,
            split=job.data_split,
        )
    if job.text is not None:
        return text_stream(Path(job.text), tokenizer, context, seed)
    return CorpusStream(tokenizer, context=context, seed=seed)


def _updates(
    folder: str | None, config: TrainConfig, dense: Model
) -> dict[str, LowRankUpdate] | None:
    """What the run begins with."""
    if folder is None:
        return None
    if not config.lora_rank:
        raise ValueError("--begin-with needs low-rank updates; give --lora-rank as well")
    from circuits.models.adapter_updates import read_updates
    from circuits.sparsify.low_rank import updated_weights

    return read_updates(dense, folder, updated_weights(dense, config.lora_targets))


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


def _make_model(
    dense: Model,
    stream: TokenStream,
    job: TrainJob,
    config: TrainConfig,
    out: Path,
    resume: bool,
    tracker: str | None,
    save: str,
    updates: dict[str, LowRankUpdate] | None,
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
    from circuits.sparsify.training_page import TRAINING_PAGE

    try:
        result = post_train(
            dense,
            stream,
            config,
            out,
            resume=resume,
            tracker=tracker,
            shard_on=shard_on,
            source=asdict(job),
            updates=updates,
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
    page = out / TRAINING_PAGE
    out_console.print(f"written to {out / 'model'}{what}. Open {page}", soft_wrap=True)
    return [f"{out / 'model'}: {failure}" for failure in result.failures]


def _summary(result: TrainResult) -> str:
    """What a run came to, in a line."""
    if not result.config.gate:
        return f"dense CE {result.dense_ce:.4f}, control CE {result.ce:.4f} nats"
    layers = ", ".join(map(percent, result.density.per_layer.tolist()))
    if result.is_by_kl:
        held = f"KL {result.kl:.4f}, bound {result.config.epsilon:g} nats"
    else:
        held = f"bound {result.tau:.4f} nats"
    watched = result.watch.in_words("KL" if result.is_by_kl else "CE")
    return (
        f"dense CE {result.dense_ce:.4f}, sparse CE {result.ce:.4f}, {held}; "
        f"{percent(result.density.overall)} of edges open at T = {result.density.context} "
        f"(layers: {layers}), weights of step {result.best_step}; {watched}"
    )
