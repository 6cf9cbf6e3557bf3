"""The part of some prompts that a run has to compute: from where they change to what is read.

Components outside a circuit write what they write on the corrupted prompt. Up to the first token in
which a prompt and its corrupted twin differ, that is what they write on the clean one, since no
position sees a later one: there, every circuit's run is the same run. Its keys and values are
recorded once, and a run of a circuit goes on behind them. Behind the position whose logits are
read, nothing is read. Prompts whose windows lie alike are run at once.

Where components write a mean or nothing, all positions differ; and a TransformerBridge has no keys
to go on from. There, windows are whole prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuits.graph import Graph
from circuits.intervene.activations import (
    MOST_NUMBERS,
    MOST_PROMPTS,
    Activations,
    AttentionTerms,
    run_to_final,
)
from circuits.models.backend import Hooks, Model, backend_of
from circuits.prompts import Prompts

if TYPE_CHECKING:
    from circuits.intervene.ablate import Experiment

COST_OF_A_RUN = 1.3e7
"""What a run costs besides its positions, in positions of a model of width 1; a position's cost
grows with the square of the width."""


@dataclass(frozen=True)
class Window:
    """Some prompts of an experiment, and the positions of them that are run.

    Attributes:
        index: The prompts.
        first: The first position.
        end: The position after the last.
        tokens: The clean prompts up to there.
        key: Keys of the positions before the first, before they are rotated; None where the window
            is run from the beginning.
        value: Values of these positions.
        gates: Which gates are open in the window, where they are held.
    """

    index: Int[Tensor, " some"]
    first: int
    end: int
    tokens: Int[Tensor, "some pos"]
    key: Float[Tensor, "layer some before head d_head"] | None = None
    value: Float[Tensor, "layer some before head d_head"] | None = None
    gates: Bool[Tensor, "layer some head window key_pos"] | None = None

    def pairs(self, pairs: Shaped[Tensor, "*pairs"], batch_dim: int) -> Shaped[Tensor, "*some"]:
        """Returns the prompts' pairs of positions whose query is in the window."""
        some = pairs.index_select(batch_dim, self.index.to(pairs.device))
        return some[..., self.first : self.end, : self.end]

    def run(self, model: Model, hooks: Hooks) -> Float[Tensor, "some window d_model"]:
        """Returns the final residual stream of the window in a run of the clean prompts."""
        behind = backend_of(model).run_behind(model)
        if behind is None or self.key is None or self.value is None:
            return run_to_final(model, self.tokens, hooks)
        return behind(self.tokens, self.key, self.value, hooks)[0]


@dataclass(frozen=True)
class Part:
    """Prompts of an experiment that are run at once.

    Attributes:
        experiment: These prompts as if they were no more than their window; the experiment itself
            where its prompts are run as wholes.
        rows: Which of the prompts of that.
        window: Which prompts and positions of the experiment itself.
    """

    experiment: Experiment
    rows: slice
    window: Window


def whole_part(experiment: Experiment, rows: slice) -> Part:
    """Returns prompts of an experiment that are run as wholes."""
    tokens = experiment.prompts.clean
    index = torch.arange(rows.start, rows.stop, device=tokens.device)
    return Part(experiment, rows, Window(index, 0, tokens.shape[1], tokens[rows]))


def cut_parts(experiment: Experiment) -> list[Part]:
    """Returns this process's share of an experiment's prompts, cut to their windows."""
    prompts, attention = experiment.prompts, experiment.ablated.attention
    windows = divide(
        experiment.graph,
        prompts,
        experiment.model.cfg.d_model,
        n_parts=experiment.workers.count,
        goes_on=attention.key is not None,
    )
    held = experiment.clean_gates if experiment.holds_gates else None
    found = []
    for _, (index, first, end) in experiment.workers.own(windows):
        window = Window(index, first, end, prompts.clean[index, :end])
        if attention.key is not None:
            before = (attention.key[:, index, :first], attention.value[:, index, :first])
            window = replace(window, key=before[0], value=before[1])
        if held is not None:
            window = replace(window, gates=window.pairs(held, 1))
        cut = replace(
            experiment,
            prompts=cut_prompts(prompts, index, first, end),
            ablated=cut_activations(experiment.ablated, index, first, end),
            window=window,
        )
        found.append(Part(cut, slice(0, len(index)), window))
    return found


def divide(
    graph: Graph, prompts: Prompts, d_model: int, *, n_parts: int, goes_on: bool
) -> list[tuple[Int[Tensor, " some"], int, int]]:
    """Returns prompts that are run at once, with the first position and the end of each window.

    Args:
        graph: The graph.
        prompts: The prompts.
        d_model: Width of the residual stream.
        n_parts: The least number of parts, if there are as many prompts.
        goes_on: Whether a run may begin where prompts change.
    """
    firsts = first_changes(prompts).tolist() if goes_on else [0] * len(prompts)
    ends = prompts.lengths.tolist()
    order = sorted(range(len(prompts)), key=lambda row: (firsts[row], ends[row]))
    most = min(MOST_PROMPTS, -(-len(prompts) // n_parts))
    found = []
    for first, end, rows in _cheapest(order, firsts, ends, COST_OF_A_RUN / d_model**2):
        per_prompt = graph.n_sources * (end - first) * d_model
        size = min(most, max(1, MOST_NUMBERS // per_prompt))
        for start in range(0, len(rows), size):
            index = torch.tensor(sorted(rows[start : start + size]), device=prompts.clean.device)
            found.append((index, first, end))
    return found


def first_changes(prompts: Prompts) -> Int[Tensor, " batch"]:
    """Returns the first position at which each prompt differs from its twin; at most the last."""
    differs = prompts.clean != prompts.corrupted
    first = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), prompts.last)
    return torch.minimum(first, prompts.last)


def _cheapest(
    order: Sequence[int], firsts: Sequence[int], ends: Sequence[int], cost_of_a_run: float
) -> list[tuple[int, int, list[int]]]:
    """Cuts prompts in order into groups, so that runs and positions together cost least."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for row in order:
        kinds.setdefault((firsts[row], ends[row]), []).append(row)
    places = list(kinds)

    @cache
    def best(start: int) -> tuple[float, int]:
        """The cost of what is from `start` on, and where its first group ends."""
        if start == len(places):
            return 0.0, start
        found, n_rows, last = (float("inf"), start), 0, 0
        for stop in range(start + 1, len(places) + 1):
            n_rows, last = n_rows + len(kinds[places[stop - 1]]), max(last, places[stop - 1][1])
            cost = cost_of_a_run + n_rows * (last - places[start][0]) + best(stop)[0]
            found = min(found, (cost, stop))
        return found

    for start in range(len(places), -1, -1):  # from behind, so that calls are not nested deeply
        best(start)
    found, start = [], 0
    while start < len(places):
        _, stop = best(start)
        group = places[start:stop]
        rows = [row for place in group for row in kinds[place]]
        found.append((places[start][0], max(end for _, end in group), rows))
        start = stop
    return found


def cut_prompts(prompts: Prompts, index: Int[Tensor, " some"], first: int, end: int) -> Prompts:
    """Returns some prompts as if they were no more than their window."""
    some = prompts.subset(index.tolist())
    return replace(
        some,
        clean=some.clean[:, first:end],
        corrupted=some.corrupted[:, first:end],
        lengths=some.lengths - first,
    )


def some_prompts(acts: Activations, index: Int[Tensor, " some"]) -> Activations:
    """Returns the activations of some prompts."""
    found = cut_activations(acts, index, 0, acts.embed.shape[1])
    key = acts.attention.key
    return (
        found
        if key is None
        else replace(found, attention=replace(found.attention, key=key[:, index]))
    )


def cut_activations(
    acts: Activations, index: Int[Tensor, " some"], first: int, end: int
) -> Activations:
    """Returns the activations of some prompts in their window; its queries see all keys before."""
    attention = acts.attention

    def cut(layers: Tensor) -> Tensor:
        return layers[:, index, first:end]

    return Activations(
        embed=acts.embed[index, first:end],
        z=cut(acts.z),
        mlp_out=cut(acts.mlp_out),
        resid_pre=cut(acts.resid_pre),
        resid_mid=cut(acts.resid_mid),
        resid_final=acts.resid_final[index, first:end],
        attention=AttentionTerms(
            pattern=attention.pattern[:, index, :, first:end, :end],
            value=attention.value[:, index, :end],
        ),
    )
