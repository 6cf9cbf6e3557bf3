"""Does the ratio of circuit sizes hold when the choices behind it change?

One choice is varied at a time, the others stay at their defaults: the attribution method, the order
in which components are taken, what gates do in a circuit's runs, the ablation, the metric, the
number of prompts, and along with each of them the faithfulness that is asked for. A claim about two
models that depends on one of these choices is a claim about the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from circuits.attribute import METHODS, Scores
from circuits.choices import ABLATIONS, GATES
from circuits.discovery.rank import build_circuit, rank_components, select_edges
from circuits.discovery.redraw import ABOVE, halves_to_redraw
from circuits.discovery.search import find_smallest
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import (
    CannotDoTask,
    Experiment,
    check_does_task,
    prepare_experiment,
)
from circuits.metrics import METRICS
from circuits.models.load import tokenizer_of
from circuits.prompts import Prompts
from circuits.results.comparison import SIDES
from circuits.results.discovery import DiscoverConfig
from circuits.results.intervals import ratio_interval
from circuits.tasks import Task, TooFewPrompts, check_task_names
from circuits.workers import ALONE, Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model

TARGETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
GRANULARITIES = ("head", "edge")
FAST_METHODS = (
    "attribution_patching",
    "integrated_gradients",
    "gradient_average",
    "local_patching",
)
"""Methods that estimate effects in a few passes; all others can be asked for by name."""
SELECTIONS = ("absolute", "signed")
PROMPT_COUNTS = (25, 100)
REDRAWS = 5
"""Halves of the prompts in each setting: fewer than in a comparison, as there are many settings."""
COLUMNS = (
    *("task", "granularity", "method", "selection", "gates", "ablation", "metric"),
    *("target", "prompts"),
    *("dense", "sparse", "ratio", "ratio_low", "ratio_high", "note"),
)


@dataclass(frozen=True)
class _Setting:
    """One choice of each kind; without a metric it is the task's own."""

    method: str
    selection: str
    gates: str
    ablation: str
    metric: str | None
    n_prompts: int


_SizeAt = dict[tuple[str, float], float]
"""Sizes of circuits by granularity and target."""


@dataclass(frozen=True)
class _Sizes:
    """The size of one model's circuit, and on halves of the prompts."""

    size: float
    redrawn: tuple[float, ...]


def robustness(
    dense: Model,
    sparse: Model,
    tasks: Sequence[Task],
    *,
    granularities: Sequence[str] = GRANULARITIES,
    methods: Sequence[str] = FAST_METHODS,
    selections: Sequence[str] = SELECTIONS,
    gates: Sequence[str] = tuple(GATES),
    ablations: Sequence[str] = tuple(ABLATIONS),
    metrics: Sequence[str] = tuple(METRICS),
    targets: Sequence[float] = TARGETS,
    n_prompts: int = 50,
    prompt_counts: Sequence[int] = PROMPT_COUNTS,
    redraws: int = REDRAWS,
    seed: int = 0,
    workers: Workers = ALONE,
    on_step: Callable[[str], None] = lambda _what: None,
) -> pd.DataFrame:
    """Returns the ratio of circuit sizes, dense over sparse, for each choice.

    The first method, selection, gates and ablation, the task's own metric and `n_prompts` are the
    base; one of them is varied at a time. Components are ranked on as many prompts and sized on as
    many others. Ratios have 95 % intervals over both sets, from `redraws` halves of them, the same
    for both models; none where there are fewer than ten prompts. Where a model does not do the task
    in a setting, or the task has too few prompts, there is no size and `note` says why. `workers`
    are the processes that share the prompts, from `circuits.workers.join_workers`; all of them make
    the same call and get the same table.

    Raises:
        ValueError: an unknown choice, bad prompts, or a model whose metric or scores are not
            finite.
    """
    if "attention_edge" in granularities:
        raise ValueError("attention edges have no robustness table; choose among head, mlp, edge")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; choose among {', '.join(METRICS)}")
    check_task_names(tasks)
    base = _Setting(methods[0], selections[0], gates[0], ablations[0], None, n_prompts)
    varied = [replace(base, method=method) for method in methods[1:]]
    varied += [replace(base, selection=selection) for selection in selections[1:]]
    varied += [replace(base, gates=kind) for kind in gates[1:]]
    varied += [replace(base, ablation=ablation) for ablation in ablations[1:]]
    varied += [replace(base, metric=metric) for metric in metrics]
    varied += [replace(base, n_prompts=count) for count in prompt_counts if count != n_prompts]
    # All choices are checked before anything is run.
    for target in targets:
        for setting in (base, *varied):
            DiscoverConfig(
                target=target,
                granularities=tuple(granularities),
                method=setting.method,
                selection=setting.selection,
                gates=setting.gates,
                ablation=setting.ablation,
                n_prompts=setting.n_prompts,
                redraws=redraws,
                seed=seed,
            )
    models = dict(zip(SIDES, (dense, sparse), strict=True))
    rows = []
    for task in tasks:
        # Too few prompts for the base is an error; for a larger number it is noted.
        for model in models.values():
            task.draw(tokenizer_of(model), n_prompts, n_prompts, seed=seed)
        for setting in (base, *(other for other in varied if other.metric != task.metric)):
            metric = setting.metric or task.metric
            found: dict[str, dict[tuple[str, float], _Sizes]] = {}
            note = ""
            for side, model in models.items():
                on_step(f"{side} {task.name}: {_in_words(setting, metric)}")
                try:
                    n = setting.n_prompts
                    prompts = task.draw(tokenizer_of(model), n, n, seed=seed)
                    found[side] = _sizes_of(
                        model,
                        metric,
                        prompts,
                        setting,
                        granularities,
                        targets,
                        redraws,
                        seed,
                        workers,
                    )
                except (CannotDoTask, TooFewPrompts) as error:
                    note = f"{side} model: {error}"
                    break
                except ValueError as error:
                    raise ValueError(f"{side} model, task {task.name}: {error}") from error
            for granularity in granularities:
                for target in targets:
                    sizes = [found[side][granularity, target] for side in SIDES] if not note else []
                    rows.append(
                        {
                            "task": task.name,
                            "granularity": granularity,
                            "method": setting.method,
                            "selection": setting.selection,
                            "gates": setting.gates,
                            "ablation": setting.ablation,
                            "metric": metric,
                            "target": target,
                            "prompts": setting.n_prompts,
                            "note": note,
                        }
                        | _ratio(*sizes)
                    )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def n_steps(
    n_tasks: int,
    methods: Sequence[str] = FAST_METHODS,
    selections: Sequence[str] = SELECTIONS,
    gates: Sequence[str] = tuple(GATES),
    ablations: Sequence[str] = tuple(ABLATIONS),
    metrics: Sequence[str] = tuple(METRICS),
    prompt_counts: Sequence[int] = PROMPT_COUNTS,
) -> int:
    """Returns about how many times `robustness` calls `on_step`."""
    varied = sum(len(choices) - 1 for choices in (methods, selections, gates, ablations))
    return 2 * n_tasks * (1 + varied + len(prompt_counts) + max(0, len(metrics) - 1))


def _in_words(setting: _Setting, metric: str) -> str:
    choices = (setting.method, setting.selection, setting.gates, setting.ablation, metric)
    return ", ".join((*choices, f"{setting.n_prompts} prompts"))


def verdicts(table: pd.DataFrame) -> list[str]:
    """Returns a sentence for each task and granularity: in how many settings the ratio holds."""
    found = []
    for task, granularity in dict.fromkeys(zip(table["task"], table["granularity"], strict=True)):
        rows: Any = table[(table["task"] == task) & (table["granularity"] == granularity)]
        known = rows[rows["ratio"].notna()]
        fewer, more = int((known["ratio_low"] > 1).sum()), int((known["ratio_high"] < 1).sum())
        left_out = "" if len(known) == len(rows) else f" ({len(rows) - len(known)} without a size)"
        span = f"{known['ratio'].min():.2g} to {known['ratio'].max():.2g}" if len(known) else "none"
        found.append(
            f"{task}, {granularity}: of {len(known)} settings{left_out} the sparse model needs "
            f"clearly fewer in {fewer}, clearly more in {more}; ratio {span}"
        )
    return found


def _ratio(dense: _Sizes | None = None, sparse: _Sizes | None = None) -> dict[str, float]:
    if dense is None or sparse is None:
        return dict.fromkeys(("dense", "sparse", "ratio", "ratio_low", "ratio_high"), math.nan)
    ratio, low, high = ratio_interval(dense.size, sparse.size, dense.redrawn, sparse.redrawn)
    return {
        "dense": dense.size,
        "sparse": sparse.size,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
    }


def _sizes_of(
    model: Model,
    metric: str,
    prompts: Sequence[Prompts],
    setting: _Setting,
    granularities: Sequence[str],
    targets: Sequence[float],
    redraws: int,
    seed: int,
    workers: Workers,
) -> dict[tuple[str, float], _Sizes]:
    """Circuit sizes by granularity and target, on all prompts and on halves of them."""

    def experiment_on(part: Prompts, *, is_checked: bool = False) -> Experiment:
        return prepare_experiment(
            model,
            part,
            metric=metric,
            ablation=setting.ablation,
            gates=setting.gates,
            workers=workers,
            is_checked=is_checked,
        )

    def sizes_on(ranking: Experiment, sizing: Experiment, start: _SizeAt | None) -> _SizeAt:
        scores = METHODS[setting.method](ranking, attention_edges=False)
        return {
            (granularity, target): size
            for granularity in granularities
            for target, size in _sizes_at(
                sizing, scores, granularity, setting.selection, targets, start
            ).items()
        }

    sizing = experiment_on(prompts[1])
    check_does_task(sizing)
    ranking = experiment_on(prompts[0], is_checked=True)
    whole = sizes_on(ranking, sizing, None)
    _, halves = halves_to_redraw(ranking, sizing, ablation=setting.ablation, n=redraws, seed=seed)
    redrawn = [sizes_on(*pair, whole) for pair in halves]
    return {
        key: _Sizes(size, tuple(sizes[key] for sizes in redrawn)) for key, size in whole.items()
    }


def _sizes_at(
    sizing: Experiment,
    scores: Scores,
    granularity: str,
    selection: str,
    targets: Sequence[float],
    start: _SizeAt | None,
) -> dict[float, float]:
    """Circuit sizes by target; sizes that were run once are not run again."""
    ranking = rank_components(scores, granularity, selection)
    measured: dict[int, Tensor] = {}
    counted: dict[int, float] = {}

    def evaluate(sizes: Tensor) -> Tensor:
        size = int(sizes[0])
        if size not in measured:
            edges = select_edges(sizing.graph, granularity, ranking[:size])
            measured[size] = run_edges(sizing, edges)
            counted[size] = build_circuit(scores, granularity, ranking[:size]).size
        return measured[size]

    found = {}
    for target in targets:
        search = find_smallest(
            evaluate,
            n_components=torch.tensor([len(ranking)]),
            groups=torch.zeros(len(sizing.prompts), dtype=torch.long),
            full=sizing.full,
            empty=sizing.empty,
            target=target,
            start=None if start is None else ABOVE * math.ceil(start[granularity, target]),
        )
        found[target] = counted[int(search.chosen[0])]
    return found
