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
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuits.graph import Graph
from circuits.intervene.activations import MOST_NUMBERS, MOST_PROMPTS, Activations, run_to_final
from circuits.intervene.attention_terms import AttentionTerms
from circuits.models.backend import Hooks, Model, backend_of
from circuits.prompts import Prompts

if TYPE_CHECKING:
    from circuits.intervene.experiment import Experiment

COST_OF_A_RUN = 1.3e7
"""What a run costs besides its positions, in positions of a model of width 1; a position's cost
grows with the square of the width."""


@dataclass(frozen=True)
class Window:
    """Some prompts of an experiment, and the positions of them that are run.

    Each prompt's window may begin elsewhere; all are equally wide. Before a window stand as many
    positions as the latest has: those of other prompts begin with some that are not there.

    Attributes:
        index: The prompts.
        at: The positions that are run.
        n_before: The number of positions before them.
        tokens: The clean prompts.
        key: Keys of the positions before, before they are rotated; None where windows are run from
            the beginning.
        value: Values of these positions.
        gates: Which gates are open in the window, where they are held.
    """

    index: Int[Tensor, " some"]
    at: Int[Tensor, "some window"]
    n_before: int
    tokens: Int[Tensor, "some pos"]
    key: Float[Tensor, "layer some before head d_head"] | None = None
    value: Float[Tensor, "layer some before head d_head"] | None = None
    gates: Bool[Tensor, "layer some head window seen"] | None = None

    @cached_property
    def seen(self) -> Int[Tensor, "some seen"]:
        """The positions before the window and in it; negative where there is none."""
        before = torch.arange(-self.n_before, 0, device=self.at.device)
        return torch.cat([self.at[:, :1] + before, self.at], dim=1)

    def positions(self, acts: Shaped[Tensor, "*batch_pos"], batch_dim: int) -> Tensor:
        """Returns the prompts' activations in the window; positions follow the batch."""
        return acts[(slice(None),) * batch_dim + (self.index[:, None], self.at)]

    def keys(self, acts: Shaped[Tensor, "layer batch pos head d_head"]) -> Tensor:
        """Returns the prompts' keys or values before the window and in it."""
        there = (self.seen >= 0)[..., None, None]
        return acts[:, self.index[:, None], self.seen.clamp(min=0)] * there

    def pairs(self, pairs: Shaped[Tensor, "*batch_pairs"], batch_dim: int) -> Tensor:
        """Returns the prompts' pairs of positions whose query is in the window."""
        index, query = self.index[:, None, None], self.at[:, :, None]
        found = pairs.movedim(batch_dim, 0).movedim((-2, -1), (1, 2))
        found = found[index, query, self.seen.clamp(min=0)[:, None]]  # [some, window, seen, ...]
        there = (self.seen >= 0)[:, None].view(len(found), 1, -1, *(1,) * (found.ndim - 3))
        return (found * there).movedim((1, 2), (-2, -1)).movedim(0, batch_dim).contiguous()

    def add_pairs(
        self,
        total: Float[Tensor, "group head query_pos key_pos"],
        group_of: Int[Tensor, " batch"],
        found: Float[Tensor, "some head window seen"],
        weight: float,
    ) -> None:
        """Adds `weight` times what was found for pairs of the window to each prompt's group."""
        places = zip(group_of[self.index].tolist(), self.at[:, 0].tolist(), found, strict=True)
        for group, first, one in places:
            end = first + self.at.shape[1]
            there = one[..., max(self.n_before - first, 0) :]
            total[group, :, first:end, end - there.shape[-1] : end].add_(there, alpha=weight)

    def run(self, model: Model, hooks: Hooks) -> Float[Tensor, "some window d_model"]:
        """Returns the final residual stream of the window in a run of the clean prompts."""
        behind = backend_of(model).run_behind(model)
        if behind is None or self.key is None or self.value is None:
            return run_to_final(model, self.tokens[:, : self.at.shape[1]], hooks)
        return behind(self.tokens, self.at, self.key, self.value, hooks)[0]


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
    at = torch.arange(tokens.shape[1], device=tokens.device).expand(len(index), -1)
    return Part(experiment, rows, Window(index, at, 0, tokens[rows]))


def cut_parts(experiment: Experiment) -> list[Part]:
    """Returns this process's share of an experiment's prompts, cut to their windows."""
    attention = experiment.ablated.attention
    windows = divide(
        experiment.graph,
        experiment.prompts,
        experiment.model.cfg.d_model,
        n_parts=experiment.workers.count,
        goes_on=attention.key is not None,
    )
    held = experiment.clean_gates if experiment.holds_gates else None
    found = []
    for _, window in experiment.workers.own(windows):
        if attention.key is not None:
            past = [window.keys(acts)[:, :, : window.n_before]
                    for acts in (attention.key, attention.value)]  # fmt: skip
            window = replace(window, key=past[0], value=past[1])
        if held is not None:
            window = replace(window, gates=window.pairs(held, 1))
        cut = replace(
            experiment,
            prompts=_cut_prompts(experiment.prompts, window),
            ablated=_cut_activations(experiment.ablated, window),
            window=window,
        )
        found.append(Part(cut, slice(0, len(window.index)), window))
    return found


def divide(
    graph: Graph, prompts: Prompts, d_model: int, *, n_parts: int, goes_on: bool
) -> list[Window]:
    """Returns the windows of prompts that are run at once, without what stands before them.

    Args:
        graph: The graph.
        prompts: The prompts.
        d_model: Width of the residual stream.
        n_parts: The least number of parts, if there are as many prompts.
        goes_on: Whether a run may begin where prompts change. Windows then end with the prompts;
            else they begin with them.
    """
    ends = prompts.lengths
    needed = ends - first_changes(prompts) if goes_on else ends
    most = min(MOST_PROMPTS, -(-len(prompts) // n_parts))
    rooms = ends.tolist() if goes_on else [prompts.clean.shape[1]] * len(prompts)
    found = []
    for width, rows in _cheapest(needed.tolist(), rooms, COST_OF_A_RUN / d_model**2):
        size = min(most, max(1, MOST_NUMBERS // (graph.n_sources * width * d_model)))
        for start in range(0, len(rows), size):
            index = torch.tensor(sorted(rows[start : start + size]), device=ends.device)
            first = ends[index] - width if goes_on else torch.zeros_like(index)
            at = first[:, None] + torch.arange(width, device=ends.device)
            found.append(Window(index, at, int(first.max()), prompts.clean[index]))
    return found


def first_changes(prompts: Prompts) -> Int[Tensor, " batch"]:
    """Returns the first position at which each prompt differs from its twin; at most the last."""
    differs = prompts.clean != prompts.corrupted
    first = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), prompts.last)
    return torch.minimum(first, prompts.last)


def _cheapest(
    needed: Sequence[int], rooms: Sequence[int], cost_of_a_run: float
) -> list[tuple[int, list[int]]]:
    """Divides prompts so that runs and positions together cost least: widths and their prompts.

    Args:
        needed: How wide a window each prompt needs.
        rooms: How wide one it has room for.
        cost_of_a_run: In positions.
    """
    kinds: dict[tuple[int, int], list[int]] = {}
    for row in sorted(range(len(needed)), key=lambda row: (needed[row], rooms[row])):
        kinds.setdefault((needed[row], rooms[row]), []).append(row)
    places = list(kinds)
    best: dict[int, tuple[float, int]] = {len(places): (0.0, len(places))}
    for start in reversed(range(len(places))):  # the least cost from there on, and the next group
        n_rows, room = 0, rooms[kinds[places[start]][0]]
        best[start] = (float("inf"), start)
        for stop in range(start + 1, len(places) + 1):
            width, n_rows = places[stop - 1][0], n_rows + len(kinds[places[stop - 1]])
            room = min(room, places[stop - 1][1])
            if width > room:
                break
            cost = cost_of_a_run + n_rows * width + best[stop][0]
            best[start] = min(best[start], (cost, stop))
    found, start = [], 0
    while start < len(places):
        _, stop = best[start]
        rows = [row for place in places[start:stop] for row in kinds[place]]
        found.append((places[stop - 1][0], rows))
        start = stop
    return found


def _cut_prompts(prompts: Prompts, window: Window) -> Prompts:
    """The prompts of a window as if they were no more than that."""
    some = prompts.subset(window.index.tolist())
    return replace(
        some,
        clean=window.positions(prompts.clean, 0),
        corrupted=window.positions(prompts.corrupted, 0),
        lengths=some.lengths - window.at[:, 0],
    )


def _cut_activations(acts: Activations, window: Window) -> Activations:
    """The activations in a window; its queries see all keys before."""
    attention = acts.attention
    return Activations(
        embed=window.positions(acts.embed, 0),
        z=window.positions(acts.z, 1),
        mlp_out=window.positions(acts.mlp_out, 1),
        resid_pre=window.positions(acts.resid_pre, 1),
        resid_mid=window.positions(acts.resid_mid, 1),
        resid_final=window.positions(acts.resid_final, 0),
        attention=AttentionTerms(
            pattern=window.pairs(attention.pattern, 1), value=window.keys(attention.value)
        ),
    )


def some_prompts(acts: Activations, index: Int[Tensor, " some"]) -> Activations:
    """Returns the activations of some prompts."""
    attention = acts.attention
    return Activations(
        embed=acts.embed[index],
        z=acts.z[:, index],
        mlp_out=acts.mlp_out[:, index],
        resid_pre=acts.resid_pre[:, index],
        resid_mid=acts.resid_mid[:, index],
        resid_final=acts.resid_final[index],
        attention=AttentionTerms(
            pattern=attention.pattern[:, index],
            value=attention.value[:, index],
            key=None if attention.key is None else attention.key[:, index],
        ),
    )
