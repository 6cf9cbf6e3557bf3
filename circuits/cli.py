"""The command line: arguments in, calls of the package, tables and exit codes out.

Exit codes: 0 done, 1 a failure (one line on stderr), 2 bad usage, 130 interrupted. `--debug` shows
tracebacks. torch and TransformerLens are imported only once the arguments have been read.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from circuits.discovery import DiscoverConfig
    from circuits.sparsify.data import TokenStream
    from circuits.tasks import Task

app = typer.Typer(
    name="circuits",
    help="Sparse attention post-training, and circuits of dense and sparse models side by side.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
out_console = Console()
err_console = Console(stderr=True)

Target = Annotated[float, typer.Option(help="Faithfulness that a circuit must reach, 0 to 1.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="A task's name, or a .csv or .jsonl of prompt pairs. Repeatable."),
]
Granularities = Annotated[
    list[str] | None,
    typer.Option("--granularity", help="head, mlp, edge or attention_edge. Repeatable."),
]
Method = Annotated[
    str,
    typer.Option(
        help="attribution_patching, integrated_gradients, integrated_activations, "
        "gradient_average, local_patching or exact_patching."
    ),
]
SelectionName = Annotated[
    str, typer.Option("--selection", help="Order of components: absolute, signed or greedy.")
]
AblationName = Annotated[str, typer.Option("--ablation", help="corrupted, mean or zero.")]
NPrompts = Annotated[int, typer.Option("--prompts", help="Prompts to rank on, and to hold out.")]
Seed = Annotated[int, typer.Option(help="Seed of prompts, random circuits and resamples.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]

DEFAULT_TASKS = ["ioi", "greater_than"]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    del debug  # Read in main(), which catches the errors.


@app.command("compare")
def compare_command(
    dense: Annotated[str, typer.Option(help="The dense model: a name or folder.")] = "dense",
    sparse: Annotated[str, typer.Option(help="Its sparse twin: a name or folder.")] = "sparse",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="One more model beside the pair, as NAME=MODEL: a control, or a further twin. "
            "Repeatable.",
        ),
    ] = None,
    task: Tasks = None,
    target: Target = 0.9,
    granularity: Granularities = None,
    method: Method = "attribution_patching",
    selection: SelectionName = "absolute",
    ablation: AblationName = "corrupted",
    prompts: NPrompts = 100,
    seed: Seed = 0,
    device: Device = "cpu",
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text on which cross-entropy and density are measured."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
) -> None:
    """Compare the circuits of a dense model and of its sparse twin."""
    with _usage_errors():
        from circuits.compare_models import compare, steps_of_compare
        from circuits.models import load_model
        from circuits.report import check_writable, write_results

        tasks = [_read_task(name) for name in task or DEFAULT_TASKS]
        config = _config(target, granularity, method, selection, ablation, prompts, seed)
        check_writable(out)
        sources = _named_models(model or [])
        models = load_model(dense, device=device), load_model(sparse, device=device)
        others = {name: load_model(source, device=device) for name, source in sources.items()}
        sequences = None
        if text is not None:
            context = min(128, *(model.cfg.n_ctx for model in models))
            stream = _text_stream(text, models[0].tokenizer, context, seed)
            sequences = stream.held_out("selection", 64)
    beside = "".join(f", beside {name}" for name in others)
    err_console.print(f"comparing {dense} and {sparse}{beside} on {device}, seed {seed}")
    with _progress(steps_of_compare(config, len(tasks), len(others))) as step:
        comparison = compare(
            *models,
            tasks,
            config,
            text=sequences,
            names=(dense, sparse),
            others=others,
            on_step=step,
        )
    comparison.run["command"] = "circuits " + shlex.join(sys.argv[1:])
    write_results(comparison, out)
    _print_frame(comparison.models_table(), "Are the models equally good?")
    _print_frame(_compact(comparison.summary_table()), f"Components that recover {target:.0%}")
    if others:
        title = "The dense model against each of the others"
        _print_frame(_compact_others(comparison.others_table()), title)
    out_console.print(
        "ratio: dense / sparse, with its 95 % interval over held-out prompts; faithful: the\n"
        "circuit's faithfulness, dense and sparse\n"
        f"{comparison.run['seconds']} s, seed {seed}, {device}. Open {out / 'report.html'}"
    )


@app.command("robustness")
def robustness_command(
    dense: Annotated[str, typer.Option(help="The dense model: a name or folder.")] = "dense",
    sparse: Annotated[str, typer.Option(help="Its sparse twin: a name or folder.")] = "sparse",
    task: Tasks = None,
    granularity: Annotated[
        list[str] | None, typer.Option("--granularity", help="head, mlp or edge. Repeatable.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Methods to try. Repeatable.")
    ] = None,
    prompts: NPrompts = 50,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("robustness"),
) -> None:
    """See whether the ratio of sizes holds under other methods, ablations and targets."""
    with _usage_errors():
        from circuits.figures import robustness_figure
        from circuits.files import write_text
        from circuits.models import load_model
        from circuits.robustness import FAST_METHODS, GRANULARITIES, n_steps, robustness, verdicts

        tasks = [_read_task(name) for name in task or DEFAULT_TASKS]
        methods = tuple(name.replace("-", "_") for name in method or FAST_METHODS)
        out.mkdir(parents=True, exist_ok=True)
        models = load_model(dense, device=device), load_model(sparse, device=device)
    err_console.print(f"trying {dense} and {sparse} on {device}, seed {seed}")
    with _progress(n_steps(len(tasks), methods)) as step, _usage_errors():
        table = robustness(
            *models,
            tasks,
            granularities=tuple(granularity or GRANULARITIES),
            methods=methods,
            n_prompts=prompts,
            seed=seed,
            on_step=step,
        )
    write_text(out / "robustness.csv", table.to_csv(index=False))
    page = robustness_figure(table).to_html(include_plotlyjs=True, full_html=True)
    write_text(out / "robustness.html", page)
    for sentence in verdicts(table):
        out_console.print(sentence, soft_wrap=True)
    out_console.print(f"written to {out}")


@app.command("discover")
def discover_command(
    model: Annotated[str, typer.Option(help="A model: a name or folder.")] = "dense",
    task: Annotated[str, typer.Option(help="A task's name, or a file of prompt pairs.")] = "ioi",
    target: Target = 0.9,
    granularity: Granularities = None,
    method: Method = "attribution_patching",
    selection: SelectionName = "absolute",
    ablation: AblationName = "corrupted",
    prompts: NPrompts = 100,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("discovery.json"),
) -> None:
    """Find the circuits of one model for one task."""
    with _usage_errors():
        import pandas as pd

        from circuits.find_circuits import discover, steps_of
        from circuits.models import load_model

        chosen = _read_task(task)
        config = _config(target, granularity, method, selection, ablation, prompts, seed)
        if not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to write {out.name} into")
        loaded = load_model(model, device=device)
    err_console.print(f"looking for {chosen.name} in {model} on {device}, seed {seed}")
    with _progress(steps_of(config)) as step:
        found = discover(loaded, chosen, config, on_step=step)
    found.save(out)
    rows = [
        {
            "granularity": name,
            "size": one.size,
            "low": one.size_low,
            "high": one.size_high,
            "of": one.n_components,
            "faithfulness": one.faithfulness,
            "random": sum(one.random_faithfulness) / len(one.random_faithfulness),
        }
        for name, one in found.found.items()
    ]
    out_console.print(
        f"{chosen.name}: {found.metric} {found.metric_full:.3f} (ablated "
        f"{found.metric_empty:.3f}), accuracy {found.accuracy:.1%} on {found.n_heldout} prompts"
    )
    _print_frame(pd.DataFrame(rows), f"Components that recover {target:.0%}")
    out_console.print(f"written to {out}")


@app.command("tasks")
def tasks_command(
    task: Annotated[str | None, typer.Argument(help="Show prompts of this task.")] = None,
    model: Annotated[str, typer.Option(help="Model whose tokenizer to use.")] = "dense",
    show: Annotated[int, typer.Option(help="How many prompts.")] = 5,
    seed: Seed = 0,
) -> None:
    """List the tasks, or show prompts of one."""
    with _usage_errors():
        from circuits.models import load_model
        from circuits.tasks import get_task, task_names

        if task is None:
            table = Table("task", "metric", "what it is")
            for name in task_names():
                table.add_row(name, get_task(name).metric, get_task(name).description)
            out_console.print(table)
            return
        chosen = _read_task(task)
        tokenizer: Any = load_model(model).tokenizer
        chosen.build(tokenizer, n_ranking=1, n_heldout=show, seed=seed)  # The checks.
    for pair in chosen.pairs(tokenizer, show, seed):
        answers = ", ".join(pair.answers[:3]) + (" ..." if len(pair.answers) > 3 else "")
        out_console.print(f"clean      {pair.clean}", markup=False, highlight=False)
        out_console.print(f"corrupted  {pair.corrupted}", markup=False, highlight=False)
        out_console.print(f"answer     {answers}\n", markup=False, highlight=False)


@app.command("models")
def models_command(
    model: Annotated[str | None, typer.Argument(help="Inspect this name or folder.")] = None,
) -> None:
    """List the embedded models, or inspect one model without loading its weights."""
    with _usage_errors():
        from circuits.models import EMBEDDED, model_info

        infos = [model_info(name) for name in ([model] if model else EMBEDDED)]
    table = Table("model", "architecture", "layers", "heads", "d_model", "parameters", "gate")
    for info in infos:
        density = (info.gate.density or {}) if info.gate else {}
        gate = "none (dense)" if info.gate is None else "bias " + str(info.gate.bias)
        if density:
            gate += f", {density['overall']:.2%} open at T = {density['context']}"
        table.add_row(
            info.name,
            info.architecture,
            str(info.n_layers),
            str(info.n_heads),
            str(info.d_model),
            f"{info.n_parameters:,}",
            gate,
        )
    out_console.print(table)


@app.command("train")
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
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    slack: Annotated[float, typer.Option(help="Nats allowed above the dense model's CE.")] = 0.0,
    penalty: Annotated[str, typer.Option(help="Edge penalty: mean, rms or log.")] = "mean",
    edge_weight: Annotated[float, typer.Option(help="Weight of the edge penalty.")] = 3.0,
    lambda_start: Annotated[float, typer.Option(help="First weight of the CE.")] = 1.0,
    lambda_rate: Annotated[float, typer.Option(help="How fast that weight follows.")] = 1.0,
    lambda_max: Annotated[float, typer.Option(help="Its upper clamp.")] = 10.0,
    distillation: Annotated[float, typer.Option(help="Weight of KL to the dense model.")] = 0.0,
    bias: Annotated[float, typer.Option(help="Added to attention scores in the gate.")] = 0.0,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out.")] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Make a control: train on, without a gate.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Make attention sparse: train a dense model into its sparse twin."""
    with _usage_errors():
        from circuits.models import frozen_parameters, load_model, save_model
        from circuits.sparsify.config import TrainConfig
        from circuits.sparsify.control import train_on
        from circuits.sparsify.data import CorpusStream
        from circuits.sparsify.evaluation import evaluate_ce
        from circuits.sparsify.train import TrainingInterrupted, post_train

        config = TrainConfig(
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            precision=precision,
            learning_rate=learning_rate,
            bias=bias,
            edge_weight=edge_weight,
            penalty=penalty,  # type: ignore[arg-type]
            slack=slack,
            lambda_start=lambda_start,
            lambda_rate=lambda_rate,
            lambda_max=lambda_max,
            distillation=distillation,
            seed=seed,
        )
        if control and resume:
            raise ValueError("a --control run cannot be resumed; start it anew without --resume")
        if control and out.exists():
            raise FileExistsError(f"{out} exists already; give a new folder for a --control run")
        dense = load_model(model, device=device)
        frozen = frozen_parameters(dense)
        stream: TokenStream
        if text is not None and data is not None:
            raise ValueError("give --text or --data, not both")
        if data is not None:
            from circuits.sparsify.dataset_stream import DatasetStream

            stream = DatasetStream(
                data,
                dense.tokenizer,
                context=context,
                seed=seed,
                column=data_column,
                subset=data_subset,
                split=data_split,
            )
        elif text is None:
            stream = CorpusStream(dense.tokenizer, context=context, seed=seed)
        else:
            stream = _text_stream(text, dense.tokenizer, context, seed)
    if control:
        err_console.print(f"training {model} on, without a gate, on {device}, seed {seed}")
        trained = train_on(dense, stream, config, frozen=frozen)
        out.mkdir(parents=True)
        save_model(trained, out / "model")
        held_out = stream.held_out("selection", config.selection_sequences)
        before, after = (evaluate_ce(one, held_out) for one in (dense, trained))
        out_console.print(f"dense CE {before:.4f}, control CE {after:.4f} nats")
        out_console.print(f"written to {out / 'model'}")
        return
    err_console.print(f"post-training {model} on {device}, seed {seed}, into {out}")
    try:
        result = post_train(dense, stream, config, out, frozen=frozen, resume=resume)
    except TrainingInterrupted as stop:
        _say(str(stop))
        raise typer.Exit(130) from None
    layers = ", ".join(f"{density:.2%}" for density in result.density.per_layer.tolist())
    out_console.print(
        f"dense CE {result.dense_ce:.4f}, sparse CE {result.ce:.4f}, bound {result.tau:.4f} nats; "
        f"{result.density.overall:.2%} of edges open at T = {result.density.context} "
        f"(layers: {layers}), weights of step {result.best_step}",
        soft_wrap=True,
    )
    save_model(result.model, out / "model", gate=result.card())
    if not result.satisfied:
        raise RuntimeError(
            f"no state kept the bound CE <= {result.tau:.4f}; the last one is in {out / 'model'}. "
            "Train longer, allow some --slack, or lower --edge-weight"
        )
    out_console.print(f"written to {out / 'model'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return app(args=arguments, standalone_mode=False) or 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        # Bad usage has an exit code of its own (2), whichever click typer is built on.
        code = getattr(error, "exit_code", 1)
        message = getattr(error, "message", "") or str(error) or type(error).__name__
        _say(message)
        return code


def _say(message: str) -> None:
    err_console.print(f"circuits: {message}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turns what is wrong with arguments, before any work is done, into a usage error."""
    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError, PermissionError) as error:
        raise typer.BadParameter(str(error)) from error


def _read_task(name: str) -> Task:
    from circuits.tasks import get_task, task_from_file

    if name.endswith((".csv", ".jsonl")):
        return task_from_file(name)
    return get_task(name.replace("-", "_"))


def _named_models(given: list[str]) -> dict[str, str]:
    """The names and sources in `NAME=MODEL`.

    Raises:
        ValueError: one is not of that form, or a name is taken.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, source = text.partition("=")
        if not name or not source:
            raise ValueError(f"--model is {text!r}; give NAME=MODEL, such as control=folder")
        if name in (*found, "dense", "sparse"):
            raise ValueError(f"two models are called {name!r}; give each --model another name")
        found[name] = source
    return found


def _text_stream(path: Path, tokenizer: Any, context: int, seed: int) -> TokenStream:
    from circuits.sparsify.data import TextStream

    return TextStream(path, tokenizer, context=context, seed=seed)


def _config(
    target: float,
    granularity: list[str] | None,
    method: str,
    selection: str,
    ablation: str,
    prompts: int,
    seed: int,
) -> DiscoverConfig:
    from circuits.attribute import GRANULARITIES
    from circuits.discovery import DiscoverConfig

    names = [name.replace("-", "_") for name in granularity or GRANULARITIES]
    return DiscoverConfig(
        target=target,
        granularities=tuple(dict.fromkeys(names)),
        method=method,
        selection=selection,
        ablation=ablation,
        n_prompts=prompts,
        seed=seed,
    )


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console) as progress:
        bar = progress.add_task("starting", total=total)
        try:
            yield lambda what: progress.update(bar, advance=1, description=what)
        except KeyboardInterrupt:
            _say("interrupted; no results were written")
            raise typer.Exit(130) from None
        progress.update(bar, completed=total, description="done")


def _print_frame(frame: pd.DataFrame, title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in frame.columns:
        justify = "right" if frame[name].dtype.kind in "fi" else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    out_console.print(table)


def _compact(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary in columns that fit a terminal; the files have all of them."""
    bounds = zip(summary["ratio"], summary["ratio_low"], summary["ratio_high"], strict=True)
    measured = zip(summary["faithfulness_dense"], summary["faithfulness_sparse"], strict=True)
    return summary[["task", "granularity", "dense", "sparse"]].assign(
        **{
            "ratio [95 %]": [f"{one:.2f} [{low:.2f}, {high:.2f}]" for one, low, high in bounds],
            "faithful": [f"{dense:.3f}, {sparse:.3f}" for dense, sparse in measured],
        }
    )


def _compact_others(table: pd.DataFrame) -> pd.DataFrame:
    bounds = zip(table["ratio"], table["ratio_low"], table["ratio_high"], strict=True)
    return table[["task", "granularity", "model", "size"]].assign(
        **{
            "ratio [95 %]": [
                "does not do the task" if ratio != ratio else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
                for ratio, low, high in bounds
            ]
        }
    )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) >= 10
        return f"{value:.0f}" if whole else f"{value:.3g}"
    return str(value)
