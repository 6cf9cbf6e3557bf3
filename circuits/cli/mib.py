"""`circuits mib`: a method on the MIB benchmark's circuit track."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.choices import MIB_LEVELS, MIB_TASKS, SELECTIONS
from circuits.cli.config_options import named_value
from circuits.cli.console import (
    err_console,
    out_console,
    print_table,
    progress_bar,
    usage_errors,
    with_bounds,
)
from circuits.cli.options import Device, Seed, TrustRemoteCode
from circuits.results.discover_config import DiscoverConfig
from circuits.settings import settings_of

if TYPE_CHECKING:
    import pandas as pd

    from circuits.results.mib import MibCurve

_SETTINGS = settings_of(DiscoverConfig)


def mib_command(
    model: Annotated[str, typer.Option(help="A model: a name or folder.")],
    task: Annotated[str, typer.Option(help=f"{', '.join(MIB_TASKS)}.")] = "ioi",
    data: Annotated[
        Path | None,
        typer.Option(
            help="In place of the hub: a .jsonl or .parquet file with the columns of the "
            "benchmark's data set, or a folder with one for each split."
        ),
    ] = None,
    rank_split: Annotated[str, typer.Option(help="The split to score components on.")] = "train",
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "validation",
    counterfactual: Annotated[
        str | None,
        typer.Option(help="Another counterfactual than the benchmark's for the task, such as abc."),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(help="Rows to score on, and rows to measure on; all where there are fewer."),
    ] = 100,
    skip_unfit: Annotated[
        bool,
        typer.Option(
            "--skip-unfit",
            help="Leave out, and count, rows of unequal lengths and with answers of several "
            "tokens, which are refused otherwise.",
        ),
    ] = False,
    method: Annotated[
        str, typer.Option(help=_SETTINGS["method"].sentence)
    ] = "attribution_patching",
    method_option: Annotated[
        list[str] | None, typer.Option(help=f"{_SETTINGS['method_options'].sentence} Repeatable.")
    ] = None,
    level: Annotated[str, typer.Option(help=f"{' or '.join(MIB_LEVELS)}.")] = "edge",
    selection: Annotated[
        list[str] | None,
        typer.Option(
            "--selection",
            help=f"{', '.join(SELECTIONS)}. Repeatable; signed and absolute if left out.",
        ),
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option(
            help="A circuit that is known, as EAP-IG's or MIB's JSON, such as InterpBench's: adds "
            "the AUROC."
        ),
    ] = None,
    gates: Annotated[str, typer.Option(help=_SETTINGS["gates"].sentence)] = "follow",
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path, typer.Option(help="Folder for tables and the submission.")] = Path("mib"),
) -> None:
    """Measure a method as the MIB benchmark does: CPR and CMD at its ten sizes.

    Writes tables, and the ranking in the form that the benchmark's own evaluation reads.
    """
    with usage_errors():
        from circuits.discovery.find_circuits import method_of
        from circuits.discovery.mib import (
            check_known,
            check_ranking,
            find_known,
            measure_mib,
        )
        from circuits.files import check_folder, write_text
        from circuits.intervene.experiment import graph_of, prepare_experiment
        from circuits.models.load import load_model, tokenizer_of
        from circuits.results.circuit import Circuit
        from circuits.results.mib import submission, why_not_handed_in, write_submission
        from circuits.tasks.mib import mib_prompts, mib_task_name
        from circuits.tasks.mib_rows import counterfactual_name

        name = mib_task_name(task)
        selections = tuple(dict.fromkeys(selection or ("signed", "absolute")))
        for order in selections:
            check_ranking(level, order)
        config = DiscoverConfig(
            method=method,
            method_options=dict(map(named_value, method_option or ())),
            selection=selections[0],
            gates=gates,
            n_prompts=prompts,
            seed=seed,
        )
        score = method_of(config)  # Refuses an option that the method lacks.
        check_folder(out)
        reference = None if known is None else Circuit.load(known)
        loaded = load_model(model, device=device, trust_remote_code=trust_remote_code)
        graph = graph_of(loaded)
        if reference is not None:
            check_known(reference, graph, level)
        parts = mib_prompts(
            name,
            tokenizer_of(loaded),
            data=data,
            rank_split=rank_split,
            split=split,
            counterfactual=counterfactual,
            n=config.n_prompts,
            skip_unfit=skip_unfit,
        )
    for reason, count in parts.left_out.items():
        err_console.print(f"left out {count} rows: {reason}", markup=False, soft_wrap=True)
    with progress_bar(1 + 10 * len(selections)) as step:
        ranking, evaluation = (
            prepare_experiment(loaded, part, metric="logit_diff", gates=gates)
            for part in (parts.ranking, parts.evaluation)
        )
        scores = score(ranking, attention_edges=False)
        step("scored")
        curves = [
            measure_mib(evaluation, scores, level=level, selection=order, seed=seed, on_step=step)
            for order in selections
        ]
    import pandas as pd

    facts = {
        "model": model,
        "task": name,
        "data": str(data or "hub"),
        "splits": "" if data is not None and data.is_file() else f"{rank_split}, {split}",
        "counterfactual": counterfactual_name(name, counterfactual),
        "method": config.method,
        "method_options": json.dumps(dict(config.method_options)),
        "ranked_on": len(parts.ranking),
        "metric_full": evaluation.full.mean().item(),
        "metric_empty": evaluation.empty.mean().item(),
    }
    if reference is not None:
        agreement = find_known(scores, reference, level)
        facts |= {"auroc": agreement.auroc, "auroc_of_sizes": agreement.auroc_of_sizes}
    summary = pd.DataFrame([facts | curve.summary() for curve in curves])
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "summary.csv", summary.to_csv(index=False))
    sizes = pd.concat([curve.to_dataframe() for curve in curves])
    write_text(out / "sizes.csv", sizes.to_csv(index=False))
    out_console.print(
        f"{name}: logit_diff {facts['metric_full']:.3f} (ablated {facts['metric_empty']:.3f}) on "
        f"{len(parts.evaluation)} prompts",
        soft_wrap=True,
    )
    print_table(
        _by_size(curves).to_dict("records"), f"Faithfulness of the first {level}s, {config.method}"
    )
    print_table(_areas(summary).to_dict("records"), "Areas")
    out_console.print(
        f"intervals: 95 %, over prompts (drawn: {curves[0].interval})", soft_wrap=True
    )
    if reference is not None:
        out_console.print(
            f"AUROC against {known}: {facts['auroc']:.3f}; at the ten sizes "
            f"{facts['auroc_of_sizes']:.3f}",
            soft_wrap=True,
        )
    out_console.print(f"tables written to {out}", soft_wrap=True)
    if (why := why_not_handed_in(graph)) is not None:
        out_console.print(f"no submission is written: {why}", soft_wrap=True)
        return
    nodes = scores.nodes if level == "node" else None
    content = submission(graph, scores.edges, nodes)
    path = write_submission(out / "submission", name, model, content)
    out_console.print(f"submission written to {path}", soft_wrap=True)


def _by_size(curves: list[MibCurve]) -> pd.DataFrame:
    """A row for each size, with every selection side by side; the file has the edges left too."""
    import pandas as pd

    frames = [curve.to_dataframe() for curve in curves]
    table = pd.DataFrame(
        {
            "size": [f"{100 * share:g} %" for share in frames[0]["share"]],
            "chosen": frames[0]["chosen"],
        }
    )
    for curve, frame in zip(curves, frames, strict=True):
        table[f"{curve.selection} [95 %]"] = [
            with_bounds(row, "faithfulness", "{:.3f}".format) for _, row in frame.iterrows()
        ]
    return table


def _areas(summary: pd.DataFrame) -> pd.DataFrame:
    rows = [row for _, row in summary.iterrows()]
    return summary[["selection"]].assign(
        **{
            "CPR [95 %]": [with_bounds(row, "cpr", "{:.3f}".format) for row in rows],
            "CMD [95 %]": [with_bounds(row, "cmd", "{:.3f}".format) for row in rows],
            "mean F": summary["average"],
        }
    )
