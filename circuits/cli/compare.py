"""`circuits compare` and `circuits robustness`: two models, or more, side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.choices import ATTRIBUTION_METHODS, GRANULARITIES, METHOD_ALIASES, spelled
from circuits.cli.config_options import with_config_options
from circuits.cli.console import (
    err_console,
    out_console,
    print_table,
    progress_bar,
    usage_errors,
    with_bounds,
)
from circuits.cli.kept_parts import Resume, parts_of, telling, told_of_parts
from circuits.cli.launch import read_launch
from circuits.cli.options import (
    DEFAULT_TASKS,
    Device,
    NPrompts,
    Processes,
    Seed,
    Tasks,
    TrustRemoteCode,
    held_out_texts,
    in_processes,
)
from circuits.numbers import percent, sized
from circuits.results.discover_config import DiscoverConfig

if TYPE_CHECKING:
    import pandas as pd

    from circuits.models.backend import Model


@with_config_options
def compare_command(
    config_of: Callable[[], DiscoverConfig],
    dense: Annotated[str, typer.Option(help="The dense model: a name or folder.")] = "dense",
    sparse: Annotated[str, typer.Option(help="Its sparse twin: a name or folder.")] = "sparse",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="One more model next to the pair, as NAME=MODEL. MODEL@top4 is MODEL with the 4 "
            "highest attention scores of each query. Repeatable.",
        ),
    ] = None,
    twin: Annotated[
        list[str] | None,
        typer.Option(
            "--twin",
            help="A sparse twin from another training seed, as NAME=MODEL: ratios then have an "
            "interval over seeds as well. Repeatable.",
        ),
    ] = None,
    task: Tasks = None,
    device: Device = "cpu",
    processes: Processes = None,
    trust_remote_code: TrustRemoteCode = False,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text on which cross-entropy and density are measured."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    resume: Resume = False,
) -> None:
    """Compare the circuits of a dense model and of its sparse twin.

    Under accelerate launch or torchrun, several processes share the prompts.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.comparison.compare_models import compare, work_of_compare
        from circuits.comparison.parts import remove_parts
        from circuits.comparison.searches import processes_for
        from circuits.discovery.find_circuits import method_of
        from circuits.discovery.work import work_of_search, work_of_step
        from circuits.report import check_writable, warnings_of, write_results
        from circuits.report.tables import in_words
        from circuits.results.comparison import SIDES
        from circuits.tasks import find_tasks
        from circuits.workers import join_workers

        tasks = find_tasks(task or DEFAULT_TASKS)
        config = config_of()
        method_of(config)  # Refuses an option that the method lacks.
        check_writable(out)
        parts = parts_of(out, resume)
        sources = _named_models([*(model or []), *(twin or [])])
        device = launch.own_device(device)
        models = _loaded_pair(dense, sparse, device, trust_remote_code)
        others = {
            name: _loaded(source, device, trust_remote_code) for name, source in sources.items()
        }
        every = dict(zip(SIDES, models, strict=True)) | others
        workers = join_workers(models[0].W_E.device)
        processes = min(processes_for(every.values(), workers, processes), len(tasks) * len(every))
        sequences = None if text is None else held_out_texts(text, every, config.seed)
    further = "".join(f", and {name}" for name in others)
    err_console.print(
        f"comparing {dense} and {sparse}{further} on {device}{in_processes(processes)}, "
        f"seed {config.seed}"
    )
    work = work_of_compare(config, len(tasks), len(others))
    with told_of_parts(parts), progress_bar(work, work_of_step) as step:
        comparison = compare(
            *models,
            tasks,
            config,
            text=sequences,
            names=(dense, sparse),
            others=others,
            twins=[named.partition("=")[0] for named in twin or []],
            workers=workers,
            processes=processes,
            parts=parts,
            on_kept=telling(step, work_of_search(config), parts, resume=resume),
            on_step=step,
        )
    if not launch.is_first:
        return
    comparison.run.update(launch.described())
    with told_of_parts(parts):
        write_results(comparison, out)
    remove_parts(parts)
    equally_good = comparison.models_table().drop(columns="tokenizer").to_dict("records")
    print_table(
        [{name: in_words(str(name), row[name]) for name in row} for row in equally_good],
        "Are the models equally good?",
    )
    for name, table in _compact(comparison.summary_table()).items():
        print_table(
            table.to_dict("records"), f"{name}: components that recover {percent(config.target, 4)}"
        )
    for name, why in comparison.not_compared().items():
        out_console.print(f"{name} is not compared. {why}", markup=False, soft_wrap=True)
    for warning in warnings_of(comparison):
        out_console.print(warning, markup=False, soft_wrap=True)
    if others:
        title = "The dense model against each of the others"
        print_table(_compact_others(comparison.others_table()).to_dict("records"), title)
    if twin:
        title = "Over training seeds (geometric mean, with its 95 % interval)"
        print_table(comparison.seeds_table().to_dict("records"), title)
    for line in _legend(comparison.summary_table()):
        out_console.print(line, soft_wrap=True)
    out_console.print(
        f"{comparison.run['seconds']} s, seed {config.seed}, {device}. Open {out / 'report.html'}"
    )


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
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("robustness"),
) -> None:
    """See whether the ratio of sizes holds under other methods, ablations and targets.

    Under accelerate launch or torchrun, several processes share the prompts.
    """
    launch = read_launch()
    with usage_errors():
        from circuits.comparison.robustness import (
            FAST_METHODS,
            n_steps,
            robustness,
            verdicts,
        )
        from circuits.comparison.robustness import GRANULARITIES as TABLED
        from circuits.figures import robustness_figure
        from circuits.figures.style import PAGE_CONFIG
        from circuits.files import check_folder, write_text
        from circuits.tasks import find_tasks
        from circuits.workers import join_workers

        tasks = find_tasks(task or DEFAULT_TASKS)
        methods = tuple(
            spelled(name, ATTRIBUTION_METHODS, METHOD_ALIASES) for name in method or FAST_METHODS
        )
        kinds = tuple(spelled(name, GRANULARITIES) for name in granularity or TABLED)
        check_folder(out)
        device = launch.own_device(device)
        models = _loaded_pair(dense, sparse, device, trust_remote_code)
        workers = join_workers(models[0].W_E.device)
    err_console.print(f"trying {dense} and {sparse} on {device}, seed {seed}")
    steps = n_steps(len(tasks), methods)
    with progress_bar(steps) as step, usage_errors():
        table = robustness(
            *models,
            tasks,
            granularities=kinds,
            methods=methods,
            n_prompts=prompts,
            seed=seed,
            workers=workers,
            on_step=step,
        )
    if not launch.is_first:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "robustness.csv", table.to_csv(index=False))
    page = robustness_figure(table).to_html(config=PAGE_CONFIG)
    write_text(out / "robustness.html", page)
    for sentence in verdicts(table):
        out_console.print(sentence, soft_wrap=True)
    out_console.print(f"written to {out}")


def _named_models(given: list[str]) -> dict[str, str]:
    """The names and sources in `NAME=MODEL`.

    Raises:
        ValueError: one is not of that form, or a name is taken.
    """
    from circuits.comparison.compare_models import check_model_names

    found: dict[str, str] = {}
    for text in given:
        name, _, source = text.partition("=")
        if not name or not source:
            raise ValueError(
                f"a model is given as {text!r}; give NAME=MODEL, such as control=folder"
            )
        if name in (*found, "dense", "sparse"):
            raise ValueError(f"two models are called {name!r}; give each another name")
        found[name] = source
    check_model_names(found)
    return found


def _loaded_pair(
    dense: str, sparse: str, device: str, trust_remote_code: bool
) -> tuple[Model, Model]:
    from circuits.models.load import load_model

    return (
        load_model(dense, device=device, trust_remote_code=trust_remote_code),
        load_model(sparse, device=device, trust_remote_code=trust_remote_code),
    )


def _loaded(source: str, device: str, trust_remote_code: bool) -> Model:
    """A model by name or folder; `MODEL@top4` keeps the 4 highest scores of each query only."""
    from circuits.gate.top_k import add_top_k
    from circuits.models.load import load_model

    found = re.fullmatch(r"(.+)@top(\d+)", source)
    name = source if found is None else found[1]
    model = load_model(name, device=device, trust_remote_code=trust_remote_code)
    return model if found is None else add_top_k(model, int(found[2]))


def _compact(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary by task, in columns that fit a terminal; the files have all of them."""
    tables = {}
    for task, part in summary.loc[summary["granularity"] != ""].groupby("task", sort=False):
        rows: list[Any] = [row for _, row in part.iterrows()]
        ratios = {
            "ratio [95 %]": [
                with_bounds(row, "ratio", "{:.2f}".format) + ("=" if row["note"] else "")
                for row in rows
            ]
        }
        if _is_pruned(part):
            ratios["unpruned"] = [f"{row['prefix_ratio']:.2f}" for row in rows]
        tables[str(task)] = part[["granularity"]].assign(
            sizes=[
                f"{sized(row['dense'])} / {sized(row['sparse'])}"
                + ("+" if row["minimal"] is False else "")
                for row in rows
            ],
            **ratios,
            attrib=[f"{row['attribution_ratio']:.2f}" for row in rows],
            faithful=[_faithful_cell(row) for row in rows],
        )
    return tables


def _is_pruned(summary: pd.DataFrame) -> bool:
    return bool(summary["pruned"].eq(True).any())


def _faithful_cell(row: Any) -> str:
    mark = "" if row["measured_on"] == "reporting" else "*"
    return f"{row['faithfulness_dense']:.2f}, {row['faithfulness_sparse']:.2f}{mark}"


def _legend(summary: pd.DataFrame) -> list[str]:
    """What the columns of the table mean, and its marks, where it has them."""
    summary = summary.loc[summary["granularity"] != ""]
    drawn = " / ".join(dict.fromkeys(summary["interval"]))
    rows: list[Any] = [row for _, row in summary.iterrows()]
    fresh = [int(row["prompts"]) for row in rows if row["measured_on"] == "reporting"]
    lines = [
        "sizes: dense / sparse; ratio: one over the other, with its 95 % interval over the prompts "
        f"to rank and to size on (drawn: {drawn})",
    ]
    if _is_pruned(summary):
        lines = [
            "sizes: dense / sparse, of circuits that no single component can leave without missing "
            "the target on the prompts that chose them; ratio: one over the other, with its 95 % "
            f"interval over the prompts to rank and to size on (drawn: {drawn})",
            "unpruned: the ratio of the smallest prefixes of the ranking",
        ]
    if any(row["minimal"] is False for row in rows):
        lines.append("+  more might go from one of them; the bound on the trials was reached")
    lines += [
        "attrib: the ratio of how many components hold as much of all absolute attribution; no "
        "intervention, and a count that favours gated models",
        "faithful: the circuits' faithfulness, dense and sparse"
        + (f", on {fresh[0]} fresh prompts" if len(fresh) else ""),
    ]
    if any(row["note"] for row in rows):
        lines.append("=  all halves have these sizes: they are whole numbers, not certain ones")
    if len(fresh) < len(rows):
        lines.append("*  on the prompts that the circuits were found on; no fresh one has their "
                     "template")  # fmt: skip
    return lines


def _compact_others(table: pd.DataFrame) -> pd.DataFrame:
    rows: list[Any] = [row for _, row in table.iterrows()]
    cells = [
        "does not do the task"
        if math.isnan(row["size"])
        else with_bounds(row, "ratio", "{:.2f}".format)
        for row in rows
    ]
    return table[["task", "granularity", "model", "size"]].assign(**{"ratio [95 %]": cells})
