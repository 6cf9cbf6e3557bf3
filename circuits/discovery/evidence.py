"""What is said about a circuit: its size with an interval, and what it does on prompts of its own.

The size and its interval come from the trials of the search, on the sizing prompts. Everything
that says how good the circuit is comes from runs on the reporting prompts, which took no part in
finding it: its faithfulness, that of the rest, of random circuits of its size, and of other sizes.
A circuit that misses the target there is reported as it is.

A circuit of attention edges is of templates. If none of them is among the reporting prompts, as in
a file where every prompt stands for itself, nothing but the sizing prompts can show what it does;
`measured_on` then says "sizing".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.discovery.ranked import Ranked
from circuits.discovery.resample import (
    resample_prompts,
    resample_templates,
    resampled_faithfulness,
    resampled_sizes,
)
from circuits.discovery.search import Search, curve_sizes, sorted_trials
from circuits.intervene.ablate import Experiment, faithfulness
from circuits.results.discovery import DiscoverConfig, Found, MeasuredOn
from circuits.results.intervals import interval

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
        without_last: Of the circuit without the component added last, None if it has none.
        rest: Of everything outside the circuit.
        random: Of random circuits of that size.
        curve: Of circuits of other sizes along the same ranking.
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
    *,
    sizing: Experiment,
    reporting: Experiment,
    config: DiscoverConfig,
    on_step: Callable[[], None],
) -> Found:
    """Returns the circuit that a search chose, with everything that is said about it.

    Args:
        ranked: The components in order.
        search: The search on the sizing prompts.
        sizing: The sizing prompts.
        reporting: The prompts that took no part in finding the circuit.
        config: How it was looked for.
        on_step: Called after each forward run.
    """
    measured = _measure(ranked, search.chosen, sizing, reporting, config.seed, on_step)
    templates, seed = sizing.prompts.templates, config.seed
    counted = ranked.counted(search.sizes)
    of_prompts, of_templates = (
        resample(templates, seed=seed) for resample in (resample_prompts, resample_templates)
    )
    sizes = resampled_sizes(search, counted, of_prompts.weights)
    names = list(sizing.prompts.groups())
    alone = torch.tensor([[float(name == one) for name in templates] for one in names])
    circuit = ranked.circuit(search.chosen)
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
    size_low, size_high = interval(sizes)
    without = measured.without_last
    found = {
        "task_metric": sizing.metric,
        "ablation": config.ablation,
        "gates": config.gates,
        "method": config.method,
        "selection": config.selection,
        "target": config.target,
        "seed": config.seed,
        "faithfulness": float(share(measured.circuit)),
        "measured_on": measured.on,
        "n_measured": len(measured.templates),
    }
    return Found(
        circuit=replace(circuit, found=found),
        size=circuit.size,
        size_low=size_low,
        size_high=size_high,
        interval=of_prompts.drawn,
        first_crossing=ranked.circuit(search.first).size,
        n_components=n_components,
        faithfulness=found["faithfulness"],
        faithfulness_low=low,
        faithfulness_high=high,
        faithfulness_interval=again.drawn,
        faithfulness_sizing=float(
            faithfulness(search.values_at(search.chosen), search.full, search.empty)
        ),
        measured_on=measured.on,
        n_measured=len(measured.templates),
        faithfulness_without_last=None if without is None else float(share(without)),
        faithfulness_of_rest=float(share(measured.rest)),
        resampled_sizes=tuple(sizes.tolist()),
        resampled_templates=tuple(resampled_sizes(search, counted, of_templates.weights).tolist()),
        template_sizes=dict(
            zip(names, resampled_sizes(search, counted, alone.double()).tolist(), strict=True)
        ),
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
    chosen: Int[Tensor, " group"],
    sizing: Experiment,
    reporting: Experiment,
    seed: int,
    on_step: Callable[[], None],
) -> _Measured:
    """Runs the circuit, and what stands beside it, on the reporting prompts of its templates."""
    has_template = ranked.groups(reporting.prompts) >= 0
    experiment, on = (reporting, "reporting") if has_template.any() else (sizing, "sizing")
    groups = ranked.groups(experiment.prompts)
    rows = (groups >= 0).nonzero()[:, 0]
    known: dict[tuple[int, ...], Tensor] = {}

    def of_rows(values: Tensor) -> Tensor:
        return values.cpu().double()[rows]

    def run(orders: list[Tensor], sizes: Tensor) -> Tensor:
        firsts = [order[: int(size)] for order, size in zip(orders, sizes, strict=True)]
        values = of_rows(ranked.run(experiment, firsts))
        on_step()
        return values

    def run_first(sizes: Tensor) -> Tensor:
        place = tuple(sizes.tolist())
        if place not in known:
            known[place] = run(ranked.orders, sizes)
        return known[place]

    before = (chosen - 1).clamp(min=0)
    grid = curve_sizes(torch.tensor([len(order) for order in ranked.orders]))
    trials = torch.cat([grid, before[None], chosen[None]]).unique(dim=0)
    curve = torch.stack([run_first(sizes) for sizes in trials])
    sizes, curve = sorted_trials(trials, curve, groups[rows])
    generator = torch.Generator().manual_seed(seed)
    random = []
    for _ in range(N_RANDOM):
        shuffled = [order[torch.randperm(len(order), generator=generator)]
                    for order in ranked.orders]  # fmt: skip
        random.append(run(shuffled, chosen))
    rest = of_rows(ranked.run_rest(experiment, chosen))
    on_step()
    return _Measured(
        on=on,
        templates=tuple(experiment.prompts.templates[row] for row in rows.tolist()),
        full=of_rows(experiment.full),
        empty=of_rows(experiment.empty),
        circuit=run_first(chosen),
        without_last=run_first(before) if (chosen > 0).any() else None,
        rest=rest,
        random=torch.stack(random),
        curve=curve,
        sizes=sizes,
    )
