"""From a model and a task to its circuits: score, rank, search, and measure how sure we are.

Components are scored on the ranking prompts. The smallest circuit that recovers the target is
then searched on the held-out prompts by real interventions, for each granularity. Beside it stand
the number of components that hold the same share of all absolute attribution (no intervention;
the paper's count), random circuits of the same size, and an interval over prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.ablate import (
    Experiment,
    check_does_task,
    faithfulness,
    prepare_experiment,
    run_attention_edges,
    run_edges,
)
from circuits.attribute import METHODS, Granularity, Scores
from circuits.circuit import Circuit
from circuits.discovery import DiscoverConfig, Discovery, Found
from circuits.intervals import (
    interval,
    resample_counts,
    resample_templates,
    resampled_sizes,
)
from circuits.metrics import accuracy
from circuits.models import tokenizer_of
from circuits.search import N_GRID, Search, find_smallest
from circuits.select import (
    build_attention_circuit,
    build_circuit,
    n_holding,
    rank_attention_edges,
    rank_components,
    select_edges,
)
from circuits.tasks import Task, TaskPrompts

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

N_RANDOM = 5


def discover(
    model: HookedTransformer,
    task: Task,
    config: DiscoverConfig | None = None,
    *,
    prompts: TaskPrompts | None = None,
    on_step: Callable[[str], None] = lambda _what: None,
) -> Discovery:
    """Returns the smallest faithful circuits of a model for a task, one for each granularity.

    Args:
        model: The model, dense or gated; put into evaluation mode.
        task: The behaviour.
        config: How to look; the defaults if left out.
        prompts: Prompts made before, in place of those drawn from the task.
        on_step: Called with a few words after each forward run of the search.

    Raises:
        ValueError: bad prompts, or a model that does not do the task.
    """
    config = config or DiscoverConfig()
    if prompts is None:
        prompts = task.build(
            tokenizer_of(model),
            n_ranking=config.n_prompts,
            n_heldout=config.n_prompts,
            seed=config.seed,
        )
    heldout = prepare_experiment(
        model, prompts.heldout, metric=task.metric, ablation=config.ablation
    )
    check_does_task(heldout)
    ranking = prepare_experiment(
        model, prompts.ranking, metric=task.metric, ablation=config.ablation
    )
    wanted = "attention_edge" in config.granularities
    scores = METHODS[config.method](ranking, attention_edges=wanted)
    scores = _with_lone_templates(scores, heldout, config)
    on_step(f"{task.name}: scored")
    found: dict[str, Found] = {}
    for granularity in config.granularities:

        def step(what: str = f"{task.name}: {granularity}") -> None:
            on_step(what)

        if granularity == "attention_edge":
            found[granularity] = _find_attention_edges(heldout, scores, config, step)
        else:
            found[granularity] = _find_components(heldout, scores, granularity, config, step)
    return Discovery(
        task=task.name,
        metric=task.metric,
        metric_full=heldout.full.mean().item(),
        metric_empty=heldout.empty.mean().item(),
        accuracy=accuracy(heldout.clean_logits, heldout.prompts).float().mean().item(),
        n_heldout=len(heldout.prompts),
        config=config,
        found=found,
    )


def steps_of(config: DiscoverConfig) -> int:
    """Returns about how many times `discover` calls `on_step`."""
    return 1 + len(config.granularities) * (N_GRID + 9 + N_RANDOM)


def _with_lone_templates(scores: Scores, heldout: Experiment, config: DiscoverConfig) -> Scores:
    """Scores the attention edges of held-out templates that the ranking set does not have.

    Such prompts (each row of a file without templates) can only be ranked on themselves.
    """
    known = set(scores.attention_edges)
    lone = [i for i, name in enumerate(heldout.prompts.templates) if name not in known]
    if not lone or "attention_edge" not in config.granularities:
        return scores
    own = METHODS[config.method](
        prepare_experiment(
            heldout.model,
            heldout.prompts.subset(lone),
            metric=heldout.metric,
            ablation=config.ablation,
        )
    )
    return replace(scores, attention_edges=scores.attention_edges | own.attention_edges)


def _find_components(
    heldout: Experiment,
    scores: Scores,
    granularity: Granularity | str,
    config: DiscoverConfig,
    on_step: Callable[[], None],
) -> Found:
    graph = heldout.graph
    ranking = rank_components(scores, granularity, config.selection)
    groups = torch.zeros(len(heldout.prompts), dtype=torch.long)

    def evaluate(chosen: Tensor) -> Tensor:
        return run_edges(heldout, select_edges(graph, granularity, chosen))

    def circuit_at(size: int) -> Circuit:
        return build_circuit(scores, granularity, ranking[:size])

    search = find_smallest(
        lambda sizes: evaluate(ranking[: int(sizes[0])]),
        n_components=torch.tensor([len(ranking)]),
        groups=groups,
        full=heldout.full,
        empty=heldout.empty,
        target=config.target,
        on_trial=on_step,
    )
    rest = evaluate(ranking[int(search.chosen[0]) :])
    on_step()
    generator = torch.Generator().manual_seed(config.seed)
    random_values = []
    for _ in range(N_RANDOM):
        order = torch.randperm(len(ranking), generator=generator)
        random_values.append(evaluate(ranking[order[: int(search.chosen[0])]]))
        on_step()
    values = scores.edges[graph.mask] if granularity == "edge" else scores.nodes[ranking]
    return _evidence(
        search,
        circuit=circuit_at(int(search.chosen[0])),
        counted=torch.tensor([[circuit_at(int(k)).size] for k in search.sizes[:, 0]]),
        n_components=len(ranking),
        n_attribution=n_holding(values, config.target),
        rest=rest,
        random_values=torch.stack(random_values),
        heldout=heldout,
        config=config,
    )


def _find_attention_edges(
    heldout: Experiment,
    scores: Scores,
    config: DiscoverConfig,
    on_step: Callable[[], None],
) -> Found:
    by_template = heldout.prompts.groups()
    lengths = heldout.prompts.lengths
    rankings = {
        template: rank_attention_edges(
            scores.attention_edges[template], int(lengths[rows[0]]), config.selection
        )
        for template, rows in by_template.items()
    }
    groups = torch.empty(len(heldout.prompts), dtype=torch.long)
    for number, rows in enumerate(by_template.values()):
        groups[rows] = number

    def evaluate(orders: list[Tensor], sizes: Int[Tensor, " group"]) -> Tensor:
        return run_attention_edges(heldout, _kept_pairs(heldout, scores, orders, sizes, groups))

    orders = list(rankings.values())
    search = find_smallest(
        lambda sizes: evaluate(orders, sizes),
        n_components=torch.tensor([len(ranking) for ranking in orders]),
        groups=groups,
        full=heldout.full,
        empty=heldout.empty,
        target=config.target,
        on_trial=on_step,
    )
    turned = [ranking.roll(-int(size)) for ranking, size in zip(orders, search.chosen, strict=True)]
    rest = evaluate(turned, torch.tensor([len(one) for one in orders]) - search.chosen)
    on_step()
    generator = torch.Generator().manual_seed(config.seed)
    random_values = []
    for _ in range(N_RANDOM):
        shuffled = [
            ranking[torch.randperm(len(ranking), generator=generator)] for ranking in orders
        ]
        random_values.append(evaluate(shuffled, search.chosen))
        on_step()
    chosen = {
        template: ranking[: int(size)]
        for (template, ranking), size in zip(rankings.items(), search.chosen, strict=True)
    }
    held = [
        n_holding(scores.attention_edges[name].flatten(), config.target) for name in by_template
    ]
    return _evidence(
        search,
        circuit=build_attention_circuit(scores, chosen),
        counted=search.sizes,
        n_components=sum(map(len, orders)) / len(orders),
        n_attribution=sum(held) / len(held),
        rest=rest,
        random_values=torch.stack(random_values),
        heldout=heldout,
        config=config,
    )


def _kept_pairs(
    heldout: Experiment,
    scores: Scores,
    orders: list[Tensor],
    sizes: Int[Tensor, " group"],
    groups: Int[Tensor, " batch"],
) -> Bool[Tensor, "batch layer head query_pos key_pos"]:
    """The first `sizes[g]` attention edges of each group's order, for every prompt."""
    cfg, pos = heldout.model.cfg, heldout.prompts.clean.shape[1]
    kept = torch.zeros(len(orders), cfg.n_layers, cfg.n_heads, pos, pos, dtype=torch.bool)
    width = next(iter(scores.attention_edges.values())).shape[-1]
    for number, (order, size) in enumerate(zip(orders, sizes, strict=True)):
        own = torch.zeros(cfg.n_layers, cfg.n_heads, width, width, dtype=torch.bool)
        own.view(-1)[order[: int(size)]] = True
        shared = min(width, pos)
        kept[number, ..., :shared, :shared] = own[..., :shared, :shared]
    return kept[groups].to(heldout.full.device)


def _evidence(
    search: Search,
    *,
    circuit: Circuit,
    counted: Tensor,
    n_components: float,
    n_attribution: float,
    rest: Tensor,
    random_values: Tensor,
    heldout: Experiment,
    config: DiscoverConfig,
) -> Found:
    """Everything that is said about the circuit, from the trials of its search."""
    full, empty = search.full, search.empty
    templates = heldout.prompts.templates
    counted = counted.double()
    counts = resample_counts(templates, seed=config.seed)
    sizes = resampled_sizes(search, counted, counts)
    of_templates = resampled_sizes(search, counted, resample_templates(templates, seed=config.seed))
    names = list(heldout.prompts.groups())
    alone = torch.tensor([[float(name == one) for name in templates] for one in names])
    sizes_alone = resampled_sizes(search, counted, alone.double()).tolist()
    curve = faithfulness(search.values, full, empty)
    resampled_curve = (counts @ (search.values - empty).T) / (counts @ (full - empty))[:, None]
    bounds = [interval(column) for column in resampled_curve.T]
    without_last = None
    if (search.chosen > 0).any():
        before = (search.chosen - 1).clamp(min=0)
        without_last = float(faithfulness(search.values_at(before), full, empty))
    size_low, size_high = interval(sizes)
    share = search.sizes.double().mean(dim=1) / n_components
    found = {
        "task_metric": heldout.metric,
        "ablation": config.ablation,
        "method": config.method,
        "selection": config.selection,
        "target": config.target,
        "seed": config.seed,
        "n_heldout": len(heldout.prompts),
        "faithfulness": float(faithfulness(search.values_at(search.chosen), full, empty)),
    }
    return Found(
        circuit=replace(circuit, found=found),
        size=circuit.size,
        n_components=n_components,
        faithfulness=found["faithfulness"],
        faithfulness_without_last=without_last,
        faithfulness_of_rest=float(faithfulness(rest.cpu().double(), full, empty)),
        size_low=size_low,
        size_high=size_high,
        resampled_sizes=tuple(sizes.tolist()),
        resampled_templates=tuple(of_templates.tolist()),
        template_sizes=dict(zip(names, sizes_alone, strict=True)),
        n_attribution=n_attribution,
        random_faithfulness=tuple(faithfulness(random_values.cpu().double(), full, empty).tolist()),
        curve_sizes=tuple(counted.mean(dim=1).tolist()),
        curve_faithfulness=tuple(curve.tolist()),
        curve_low=tuple(low for low, _ in bounds),
        curve_high=tuple(high for _, high in bounds),
        cpr=float(torch.trapezoid(curve, share)),
        cmd=float(torch.trapezoid((1 - curve).abs(), share)),
    )
