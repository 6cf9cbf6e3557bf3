"""What is said about a circuit: its size with an interval, and what it does on prompts of its own.

The size comes from the search on the sizing prompts, its interval from the sizes that circuits have
which were found again on halves of the ranking and the sizing prompts. Everything
that says how good the circuit is comes from runs on the reporting prompts, which took no part in
finding it: its faithfulness, that of the rest, of random circuits of its size, and of other sizes.
A circuit that misses the target there is reported as it is.

A circuit of attention edges is of templates. If none of them is among the reporting prompts, as in
a file where every prompt stands for itself, nothing but the sizing prompts can show what it does;
`measured_on` then says "sizing".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.discovery.prune import Pruned
from circuits.discovery.ranked import Ranked, first_of
from circuits.discovery.redraw import Redrawn
from circuits.discovery.resample import (
    TemplateWeights,
    resample_prompts,
    resampled_faithfulness,
    resampled_sizes,
)
from circuits.discovery.search import Search, curve_sizes, sorted_trials
from circuits.intervene.experiment import Experiment, faithfulness
from circuits.results.discovery import DiscoverConfig, Evidence, MeasuredOn
from circuits.results.intervals import interval, spread_interval

N_RANDOM = 5


@dataclass(frozen=True)
class _Measured:
    """The metric of circuits on the prompts that they are reported on.

    Attributes:
        on: Which prompts these are.
        templates: The template of each.
        full: The metric of the whole model.
        empty: The metric with everything ablated.
        circuit: The metric of the circuit.
        without_last: Of the circuit without its component of the lowest rank, None if it has none.
        rest: Of everything outside the circuit.
        random: Of random circuits of that size.
        curve: Of prefixes of the same ranking, of several sizes.
        sizes: The number of components of each group in `curve`, smallest first.
    """

    on: MeasuredOn
    templates: tuple[str, ...]
    full: Float[Tensor, " batch"]
    empty: Float[Tensor, " batch"]
    circuit: Float[Tensor, " batch"]
    without_last: Float[Tensor, " batch"] | None
    rest: Float[Tensor, " batch"]
    random: Float[Tensor, "draw batch"]
    curve: Float[Tensor, "trial batch"]
    sizes: Int[Tensor, "trial group"]


def gather_evidence(
    ranked: Ranked,
    search: Search,
    pruned: Pruned | None,
    redrawn: Redrawn,
    weights: TemplateWeights,
    *,
    sizing: Experiment,
    reporting: Experiment,
    config: DiscoverConfig,
    on_step: Callable[[], None],
) -> Evidence:
    """Returns the circuit that a search chose, with everything that is said about it.

    Args:
        ranked: The components in order.
        search: The search on the sizing prompts.
        pruned: What is left of the circuit that it chose; None where that was not pruned.
        redrawn: The sizes that were found again on halves of the prompts.
        weights: Those of the sizing prompts that the search tried sizes for.
        sizing: The sizing prompts.
        reporting: The prompts that took no part in finding the circuit.
        config: How it was looked for.
        on_step: Called after each forward run.
    """
    templates, seed = sizing.prompts.templates, config.seed
    counted = ranked.counted(search.sizes)
    templates_drawn = resampled_sizes(search, counted, weights.drawn)
    of_each = resampled_sizes(search, counted, weights.each)
    prefix = first_of(ranked.orders, search.chosen)
    chosen = prefix if pruned is None else list(pruned.chosen)
    circuit = ranked.circuit(chosen)
    measured = _measure(ranked, search.chosen, chosen, sizing, reporting, seed, on_step)
    n_components = sum(map(len, ranked.orders)) / len(ranked.orders)

    full, empty = measured.full, measured.empty

    def share(values: Tensor) -> Tensor:
        return faithfulness(values, full, empty)

    again = resample_prompts(measured.templates, seed=seed)
    low, high = interval(resampled_faithfulness(measured.circuit[None], full, empty,
                                                again.weights)[:, 0])  # fmt: skip
    curve = share(measured.curve)
    bounds = [
        interval(column)
        for column in resampled_faithfulness(measured.curve, full, empty, again.weights).T
    ]
    shares = measured.sizes.double().mean(dim=1) / max(n_components, 1)
    prefix_size = ranked.circuit(prefix).size
    prefix_low, prefix_high = spread_interval(prefix_size, redrawn.prefixes)
    size_low, size_high = spread_interval(circuit.size, redrawn.sizes)
    without = measured.without_last
    on_sizing = search.values_at(search.chosen) if pruned is None else pruned.values
    provenance = {
        "task_metric": sizing.metric,
        "ablation": config.ablation,
        "gates": config.gates,
        "method": config.method,
        "selection": config.selection,
        "target": config.target,
        "prune": config.prune,
        "prune_margin": config.prune_margin,
        "seed": config.seed,
        "faithfulness": float(share(measured.circuit)),
        "measured_on": measured.on,
        "n_measured": len(measured.templates),
    }
    return Evidence(
        circuit=replace(circuit, provenance=provenance),
        size=circuit.size,
        size_low=size_low,
        size_high=size_high,
        interval=redrawn.drawn,
        prefix_size=prefix_size,
        prefix_low=prefix_low,
        prefix_high=prefix_high,
        is_minimal=None if pruned is None else pruned.is_minimal,
        n_components=n_components,
        faithfulness=provenance["faithfulness"],
        faithfulness_low=low,
        faithfulness_high=high,
        faithfulness_interval=again.drawn,
        faithfulness_sizing=float(faithfulness(on_sizing, search.full, search.empty)),
        measured_on=measured.on,
        n_measured=len(measured.templates),
        faithfulness_without_last=None if without is None else float(share(without)),
        faithfulness_of_rest=float(share(measured.rest)),
        redrawn_sizes=redrawn.sizes,
        redrawn_prefixes=redrawn.prefixes,
        stability=redrawn.stability,
        # Resamples of the search's trials say nothing about what pruning would leave.
        resampled_templates=tuple(templates_drawn.tolist()) if pruned is None else (),
        template_sizes=dict(zip(dict.fromkeys(templates), of_each.tolist(), strict=True)),
        n_attribution=ranked.n_attribution(config.target),
        random_faithfulness=tuple(share(measured.random).tolist()),
        curve_sizes=tuple(ranked.counted(measured.sizes).mean(dim=1).tolist()),
        curve_faithfulness=tuple(curve.tolist()),
        curve_low=tuple(low for low, _ in bounds),
        curve_high=tuple(high for _, high in bounds),
        cpr=float(torch.trapezoid(curve, shares)),
        cmd=float(torch.trapezoid((1 - curve).abs(), shares)),
    )


def _measure(
    ranked: Ranked,
    prefix: Int[Tensor, " group"],
    chosen: Sequence[Tensor],
    sizing: Experiment,
    reporting: Experiment,
    seed: int,
    on_step: Callable[[], None],
) -> _Measured:
    """Runs the circuit, and what it is compared with, on the reporting prompts of its templates."""
    has_template = ranked.groups(reporting.prompts) >= 0
    experiment, on = (reporting, "reporting") if has_template.any() else (sizing, "sizing")
    groups = ranked.groups(experiment.prompts)
    rows = (groups >= 0).nonzero()[:, 0]
    known: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def of_rows(values: Tensor) -> Tensor:
        return values.cpu().double()[rows]

    def run(part: Sequence[Tensor]) -> Tensor:
        place = tuple(tuple(indices.tolist()) for indices in part)
        if place not in known:
            known[place] = of_rows(ranked.run(experiment, part))
            on_step()
        return known[place]

    before = (prefix - 1).clamp(min=0)
    grid = curve_sizes(torch.tensor([len(order) for order in ranked.orders]))
    trials = torch.cat([grid, before[None], prefix[None]]).unique(dim=0)
    curve = torch.stack([run(first_of(ranked.orders, sizes)) for sizes in trials])
    sizes, curve = sorted_trials(trials, curve, groups[rows])
    generator = torch.Generator().manual_seed(seed)
    random = []
    for _ in range(N_RANDOM):
        shuffled = [order[torch.randperm(len(order), generator=generator)]
                    for order in ranked.orders]  # fmt: skip
        drawn = [order[: len(one)] for order, one in zip(shuffled, chosen, strict=True)]
        random.append(run(drawn))
    rest = of_rows(ranked.run_rest(experiment, chosen))
    on_step()
    return _Measured(
        on=on,
        templates=tuple(experiment.prompts.templates[row] for row in rows.tolist()),
        full=of_rows(experiment.full),
        empty=of_rows(experiment.empty),
        circuit=run(chosen),
        without_last=run([indices[:-1] for indices in chosen]) if any(map(len, chosen)) else None,
        rest=rest,
        random=torch.stack(random),
        curve=curve,
        sizes=sizes,
    )
