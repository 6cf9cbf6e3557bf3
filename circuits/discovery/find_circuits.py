"""From a model and a task to its circuits: score, rank, search, and measure how sure we are.

Three sets of prompts are used, each for one thing. Components are scored on the ranking prompts.
The size from which the circuit keeps the target is searched on the sizing prompts by real
interventions, for each granularity; if wanted, what can go from that circuit is then pruned, on the
same prompts. What the circuit does is measured on the reporting prompts, next to random circuits of
the same size and the number of components that hold the same share of all absolute attribution (no
intervention). How far its size would differ with other prompts is read off circuits that are found
again on halves of the first two sets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuits.attribute import METHODS, Method, Scores
from circuits.choices import Granularity
from circuits.discovery.evidence import gather_evidence
from circuits.discovery.prune import Pruned, prune
from circuits.discovery.ranked import (
    Ranked,
    RankedAttentionEdges,
    RankedComponents,
    first_of,
    search_ranked,
)
from circuits.discovery.redraw import ABOVE, Redrawn, halves_to_redraw
from circuits.discovery.resample import TemplateWeights
from circuits.discovery.search import Search
from circuits.intervene.experiment import Experiment, check_does_task, prepare_experiment
from circuits.metrics import accuracy
from circuits.models.backend import backend_of
from circuits.models.load import as_model, tokenizer_of
from circuits.prompts import Prompts
from circuits.results.circuit import Circuit
from circuits.results.discovery import DiscoverConfig, Discovery, Evidence
from circuits.results.stability import Stability
from circuits.tasks import Task, TaskPrompts, find_task
from circuits.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from circuits.models.backend import Model


def discover(
    model: Model | PreTrainedModel | str | Path,
    task: Task | str | Path,
    config: DiscoverConfig | None = None,
    *,
    prompts: TaskPrompts | None = None,
    workers: Workers = ALONE,
    on_step: Callable[[str], None] = lambda _what: None,
    **settings: Any,
) -> Discovery:
    """Returns the smallest faithful circuits of a model for a task, one for each granularity.

    Args:
        model: The model, dense or gated; put into evaluation mode. A name, a folder or a Hugging
            Face model is loaded as `circuits.models.load.as_model` says.
        task: The behaviour, or its name or file as `circuits.tasks.find_task` says.
        config: How to look; the defaults if left out.
        prompts: Prompts made before, in place of those drawn from the task.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`; all
            of them make the same call and get the same circuits.
        on_step: Called with a few words after each forward run of the search.
        settings: Fields of `DiscoverConfig` that differ from `config`, such as `n_prompts=20`.

    Raises:
        ValueError: bad prompts, or a model that does not do the task.
    """
    config = replace(config or DiscoverConfig(), **settings)
    method_of(config)  # An option that the method lacks is refused before anything is loaded.
    model, task = as_model(model), find_task(task)
    n = config.n_prompts
    if prompts is None:
        prompts = task.build(
            tokenizer_of(model), n_ranking=n, n_sizing=n, n_reporting=n, seed=config.seed
        )

    with backend_of(model).weights_as_read(model):
        return _discover(model, task, config, prompts, workers, on_step)


def _discover(
    model: Model,
    task: Task,
    config: DiscoverConfig,
    prompts: TaskPrompts,
    workers: Workers,
    on_step: Callable[[str], None],
) -> Discovery:
    """What `discover` returns, for a model and prompts that are there."""

    def experiment_on(part: Prompts, *, is_checked: bool = False) -> Experiment:
        return prepare_experiment(
            model,
            part,
            metric=task.metric,
            ablation=config.ablation,
            gates=config.gates,
            workers=workers,
            is_checked=is_checked,
        )

    sizing = experiment_on(prompts.sizing)
    reporting = experiment_on(prompts.reporting, is_checked=True)
    for experiment in (sizing, reporting):
        check_does_task(experiment)
    ranking = experiment_on(prompts.ranking, is_checked=True)
    scores = _scores(ranking, sizing, config)
    on_step(f"{task.name}: scored")
    weights = TemplateWeights.of(prompts.sizing.templates, seed=config.seed)
    chosen: dict[str, _Chosen] = {}
    for granularity in config.granularities:
        ranked = _ranked(scores, prompts.sizing, granularity, config)
        step = partial(on_step, f"{task.name}: {granularity}")
        chosen[granularity] = _choose(ranked, sizing, config, step, weights=weights)
    redrawn = _redraw(ranking, sizing, config, chosen, partial(on_step, f"{task.name}: halves"))
    found: dict[str, Evidence] = {}
    for granularity, (ranked, search, pruned) in chosen.items():
        found[granularity] = gather_evidence(
            ranked,
            search,
            pruned,
            redrawn[granularity],
            weights,
            sizing=sizing,
            reporting=reporting,
            config=config,
            on_step=partial(on_step, f"{task.name}: {granularity}"),
        )
    return Discovery(
        task=task.name,
        metric=task.metric,
        metric_full=reporting.full.mean().item(),
        metric_empty=reporting.empty.mean().item(),
        accuracy=accuracy(reporting.clean_logits, reporting.prompts).float().mean().item(),
        n_reporting=len(reporting.prompts),
        config=config,
        circuits=found,
    )


def _scores(ranking: Experiment, sizing: Experiment, config: DiscoverConfig) -> Scores:
    """Scores on the ranking prompts, and attention edges of every template to be sized.

    A template that the ranking prompts lack (each row of a file without templates) can only be
    ranked on its own sizing prompts: the positions of others mean something else.
    """
    wanted = "attention_edge" in config.granularities
    method = method_of(config)
    scores = method(ranking, attention_edges=wanted)
    lone = [i for i, name in enumerate(sizing.templates) if name not in scores.attention_edges]
    if not wanted or not lone:
        return scores
    own = method(sizing.subset(lone))
    return replace(scores, attention_edges=scores.attention_edges | own.attention_edges)


def method_of(config: DiscoverConfig) -> Method:
    """Returns the method of a config with its options fixed.

    Raises:
        ValueError: it has no such option.
    """
    method = METHODS[config.method]
    known = [name for name in inspect.signature(method).parameters
             if name not in ("experiment", "attention_edges", "checkpoint", "on_step")]  # fmt: skip
    unknown = [name for name in config.method_options if name not in known]
    if unknown:
        raise ValueError(
            f"{config.method} has no option {unknown[0]!r}; its options are "
            f"{', '.join(known) or 'none'}"
        )
    return partial(method, **config.method_options)


_Chosen = tuple[Ranked, Search, Pruned | None]
"""The components in order, the search among them, and what pruning left."""


def _ranked(
    scores: Scores, sizing: Prompts, granularity: Granularity | str, config: DiscoverConfig
) -> Ranked:
    if granularity == "attention_edge":
        return RankedAttentionEdges.of(scores, sizing, config.selection)
    return RankedComponents.of(scores, granularity, config.selection)


def _choose(
    ranked: Ranked,
    sizing: Experiment,
    config: DiscoverConfig,
    on_step: Callable[[], None],
    *,
    start: int | None = None,
    weights: TemplateWeights | None = None,
) -> _Chosen:
    """Searches a ranking from `start` on, and prunes if that is wanted.

    The sizes under `weights` can then be read off the search.
    """
    search = search_ranked(
        ranked,
        sizing,
        config.target,
        start=start,
        weights=None if weights is None else torch.cat([weights.drawn, weights.each]),
        on_trial=on_step,
    )
    if not config.prune:
        return ranked, search, None
    margin = config.prune_margin
    return ranked, search, prune(ranked, sizing, search, margin=margin, on_trial=on_step)


def _redraw(
    ranking: Experiment,
    sizing: Experiment,
    config: DiscoverConfig,
    chosen: Mapping[str, _Chosen],
    on_step: Callable[[], None],
) -> dict[str, Redrawn]:
    """Finds every circuit again on halves of the prompts: their sizes, and what is in them."""
    drawn, halves = halves_to_redraw(
        ranking,
        sizing,
        ablation=config.ablation,
        n=config.redraws,
        seed=config.seed,
    )
    again: dict[str, list[tuple[Circuit, float]]] = {granularity: [] for granularity in chosen}
    for to_rank, to_size in halves:
        scores = _scores(to_rank, to_size, config)
        for granularity, (_, found, _) in chosen.items():
            ranked = _ranked(scores, to_size.prompts, granularity, config)
            start = ABOVE * int(found.chosen.max())
            _, search, pruned = _choose(ranked, to_size, config, on_step, start=start)
            prefix = first_of(ranked.orders, search.chosen)
            left = prefix if pruned is None else pruned.chosen
            again[granularity].append((ranked.circuit(left), ranked.circuit(prefix).size))
    return {
        granularity: Redrawn(
            drawn,
            sizes=tuple(circuit.size for circuit, _ in several),
            prefixes=tuple(prefix for _, prefix in several),
            stability=Stability.of([circuit for circuit, _ in several]),
        )
        for granularity, several in again.items()
    }
