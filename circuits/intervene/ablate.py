"""Interventions: the model run with a part of its graph only, everything else ablated.

Every input of a head, an MLP or the logits is a sum over upstream sources. To run a circuit, each
destination gets

    input(dest) = ablated input(dest)
                  + sum over src in the circuit of (output(src) - ablated output(src))

where `output` is what the source writes in this very run. With all edges in the circuit this is
the model itself, with none it is the ablated model. Constants (biases, position terms) cancel in
the differences, so one formula serves every architecture. Where a norm stands between a layer's
heads and the stream, that layer's sum is taken before the norm, and the norm of it is added
(circuits/intervene/behind_heads.py).

The gates of a sparse model follow the run that they are in, or are held at their values in the
whole model's run on the clean prompt (`gates="clean"`), both in every run of a circuit and in
attribution. What stands in for an ablated component is the same for both: a corrupted run has
gates of its own. The whole model and the ablated model are the same too.

This module is the referee: attribution predicts what `exact_*` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.choices import GATES, Ablation, Gates, check_choice
from circuits.gate.gate import hold_gates, is_gated
from circuits.graph import READS, Graph
from circuits.intervene.activations import (
    Activations,
    MeanTerms,
    ablated_activations,
    attended_value,
    logits_after,
    record_gates,
    row_batches,
    run_to_final,
)
from circuits.intervene.check_model import check_model
from circuits.intervene.circuit_inputs import reader
from circuits.intervene.window import Part, Window, cut_parts, some_prompts, whole_part
from circuits.metrics import METRICS
from circuits.models.anatomy import (
    has_mlps,
    is_parallel,
    norms_heads_together,
    why_not_a_sum,
)
from circuits.models.backend import Hooks, Model, component_hooks
from circuits.prompts import Prompts
from circuits.workers import ALONE, Workers


@dataclass(frozen=True)
class Experiment:
    """A model, prompts, a metric and an ablation, with what every intervention needs.

    What takes a forward pass of its own (`clean_logits`, hence `full`) is made when first asked
    for: attribution needs none of it.

    Attributes:
        model: The model under study, in evaluation mode.
        graph: Its graph.
        prompts: The prompts, on the model's device.
        metric: A name in `circuits.metrics.METRICS`.
        ablation: What components outside a circuit write.
        ablated: The activations that stand in for ablated components, of all prompts in every
            process.
        workers: The processes that share the prompts.
        gates: What the gates of a sparse model do while a circuit runs.
        window: The prompts and positions of another experiment that this one is cut to, if it is.
    """

    model: Model
    graph: Graph
    prompts: Prompts
    metric: str
    ablation: Ablation | str
    ablated: Activations
    workers: Workers = ALONE
    gates: Gates | str = "follow"
    window: Window | None = None

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of each prompt."""
        return self.prompts.templates

    def subset(self, indices: Sequence[int]) -> Experiment:
        """Returns the experiment on the prompts at `indices`.

        What was run is not run again, but for means: these are of other prompts.
        """
        prompts = self.prompts.subset(indices)
        if isinstance(self.ablated.attention, MeanTerms):
            return prepare_experiment(
                self.model,
                prompts,
                metric=self.metric,
                ablation=self.ablation,
                gates=self.gates,
                workers=self.workers,
                is_checked=True,
            )
        rows = torch.tensor(list(indices), device=prompts.clean.device)
        found = replace(self, prompts=prompts, ablated=some_prompts(self.ablated, rows))
        for name, dim in (("clean_logits", 0), ("full", 0), ("empty", 0), ("clean_gates", 1)):
            if name in vars(self):  # where a cached_property keeps what it has
                vars(found)[name] = vars(self)[name].index_select(dim, rows)
        return found

    @cached_property
    def own_parts(self) -> list[Part]:
        """The parts of the prompts that this process runs, cut to the positions that count."""
        if isinstance(self.ablated.attention, MeanTerms):  # which are of whole templates
            return [whole_part(self, rows) for rows in self.own_batches()]
        return cut_parts(self)

    def own_batches(self) -> list[slice]:
        """Returns the batches of whole prompts that this process runs."""
        batches = row_batches(self.graph, self.prompts, self.model.cfg.d_model, self.workers.count)
        return [rows for _, rows in self.workers.own(batches)]

    @cached_property
    def clean_gates(self) -> Bool[Tensor, "layer batch head query_pos key_pos"]:
        """Which gates of a sparse model are open in the whole model's run."""
        if self.window is not None and self.window.gates is not None:
            return self.window.gates
        return record_gates(self.model, self.graph, self.prompts)

    @property
    def holds_gates(self) -> bool:
        """Whether there are gates, and they are held."""
        return self.gates != "follow" and is_gated(self.model)

    def hold_gates(self, rows: slice) -> AbstractContextManager[None]:
        """Returns a context for runs of some prompts, in which gates that are to be held are."""
        if not self.holds_gates:
            return nullcontext()
        return hold_gates(self.model, self.clean_gates[:, rows])

    def run(self, rows: slice, hooks: Hooks) -> Float[Tensor, "some pos d_model"]:
        """Returns the final residual stream in a run of some clean prompts, or of their window."""
        if self.window is not None:
            return self.window.run(self.model, hooks)
        return run_to_final(self.model, self.prompts.clean[rows], hooks)

    @cached_property
    def clean_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """The whole model's logits at the answer position."""
        with component_hooks(self.model, split_heads=False), torch.no_grad():
            return _logits(self, lambda _part: [])

    @cached_property
    def full(self) -> Float[Tensor, " batch"]:
        """The metric of the whole model, per prompt.

        Raises:
            ValueError: the metric is not one finite number for each prompt.
        """
        return _checked(self, self.score(self.clean_logits), "whole")

    @cached_property
    def empty(self) -> Float[Tensor, " batch"]:
        """The metric with everything ablated, per prompt.

        Raises:
            ValueError: the metric is not one finite number for each prompt.
        """
        with torch.no_grad():
            logits = logits_after(self.model, self.ablated.resid_final, self.prompts.last)
        return _checked(self, self.score(logits), "ablated")

    def score(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """Returns the metric of each prompt."""
        return METRICS[self.metric](logits, self.prompts, self.clean_logits)


def faithfulness(
    values: Float[Tensor, "*sizes batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
) -> Float[Tensor, "*sizes"]:
    """Returns (m(C) - m(empty)) / (m(full) - m(empty)), each m the mean over prompts."""
    return (values.mean(dim=-1) - empty.mean()) / (full.mean() - empty.mean())


def graph_of(model: Model) -> Graph:
    """Returns the model's graph.

    Raises:
        ValueError: the residual stream is not the sum of the components' outputs, as in models
            that scale what they write (Granite).
    """
    cfg = model.cfg
    if (reason := why_not_a_sum(cfg)) is not None:
        raise ValueError(
            f"{cfg.model_name} {reason}; edges are not defined for such a model, use one whose "
            "residual stream is the sum of what they write"
        )
    return Graph(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        has_mlps=has_mlps(cfg),
        parallel_attn_mlp=is_parallel(cfg),
        d_model=cfg.d_model,
    )


def prepare_experiment(
    model: Model,
    prompts: Prompts,
    *,
    metric: str,
    ablation: Ablation | str = "corrupted",
    gates: Gates | str = "follow",
    workers: Workers = ALONE,
    is_checked: bool = False,
) -> Experiment:
    """Returns an experiment with the clean and the ablated run, made once.

    Args:
        model: The model under study; put into evaluation mode.
        prompts: The prompts.
        metric: A name in `circuits.metrics.METRICS`.
        ablation: What components outside a circuit write.
        gates: What the gates of a sparse model do while a circuit runs; a dense model has none.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`.
        is_checked: Whether `check_model` has passed the model already, which takes two runs.

    Raises:
        ValueError: an unknown name, prompts longer than the model's context, or a model whose edges
            are not defined or cannot be measured (see `check_model`).
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    check_choice("gates", gates, GATES)
    if prompts.clean.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"the longest prompt has {prompts.clean.shape[1]} tokens, the model reads "
            f"{model.cfg.n_ctx}; shorten the prompts"
        )
    graph = graph_of(model)
    prompts = prompts.to(model.W_E.device)
    model.eval()
    if not is_checked:
        check_model(model, graph, prompts)
    ablated = ablated_activations(model, graph, prompts, ablation)
    return Experiment(model, graph, prompts, metric, ablation, ablated, workers, gates)


def _checked(experiment: Experiment, values: Tensor, which: str) -> Float[Tensor, " batch"]:
    if values.shape != (len(experiment.prompts),):
        raise ValueError(
            f"the metric {experiment.metric!r} returned shape {tuple(values.shape)} for "
            f"{len(experiment.prompts)} prompts; it must return one number for each"
        )
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(
            f"{experiment.metric} of the {which} model is {values[bad].item()} on prompt "
            f"{bad + 1}; look for NaN or infinity in the model's weights"
        )
    return values


class CannotDoTask(ValueError):
    """The model does not show the behaviour, so that there is no circuit to look for."""


def check_does_task(experiment: Experiment, *, least_gap: float = 0.05) -> None:
    """Refuses a model that does not do the task: its faithfulness would be a ratio of noises.

    The gap between the whole and the ablated model must exceed twice its standard error over
    prompts, and `least_gap` in the units of the metric.

    Raises:
        CannotDoTask: the gap is too small.
    """
    gaps = experiment.full - experiment.empty
    gap = gaps.mean().item()
    error = gaps.std().item() / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    if gap < max(least_gap, 2 * error):
        raise CannotDoTask(
            f"the model does not do the task: {experiment.metric} is "
            f"{experiment.full.mean():.3f} for the whole model and {experiment.empty.mean():.3f} "
            f"with everything ablated ({experiment.ablation}); the difference {gap:.3f} "
            f"(standard error {error:.3f}) is too small to look for a circuit"
        )


@torch.no_grad()
def run_edges(experiment: Experiment, edges: Bool[Tensor, "src dest"]) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only `edges` intact.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    graph = experiment.graph
    edges, mask = edges & graph.mask, graph.mask
    if torch.equal(edges, mask & edges.any(dim=1, keepdim=True)):
        return run_nodes(experiment, edges.any(dim=1))
    if _is_ablated_where_unreached(experiment):
        edges = graph.connected(edges)
    return _measure(experiment, lambda part: _edge_hooks(part, edges), split_heads=True)


@torch.no_grad()
def run_nodes(experiment: Experiment, nodes: Bool[Tensor, " src"]) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only `nodes` intact, each with all of its edges.

    The special case of `run_edges` in which every destination reads the same sources, so that a
    layer's heads share one residual stream: it takes about as long as a run of the model.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    return _measure(experiment, lambda part: _node_hooks(part, nodes))


@torch.no_grad()
def run_attention_edges(
    experiment: Experiment, kept: Bool[Tensor, "batch layer head query_pos key_pos"]
) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only the `kept` attention edges intact.

    An attention edge outside has its term A_ij P_ij v_j in z_i replaced by the ablated run's
    term. Embeddings and MLPs stay intact.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    return _measure(experiment, lambda part: attention_hooks(part, kept))


def _measure(
    experiment: Experiment, hooks_of: Callable[[Part], Hooks], *, split_heads: bool = False
) -> Float[Tensor, " batch"]:
    with component_hooks(experiment.model, split_heads=split_heads):
        values = experiment.score(_logits(experiment, hooks_of))
    return _checked(experiment, values, "partly ablated")


def _logits(
    experiment: Experiment, hooks_of: Callable[[Part], Hooks]
) -> Float[Tensor, "batch d_vocab"]:
    """The logits at the answer position of all prompts, run a part at a time with hooks."""
    model = experiment.model
    found = model.W_U.new_zeros(len(experiment.prompts), model.W_U.shape[-1])
    for part in experiment.own_parts:
        here, rows = part.experiment, part.rows
        with here.hold_gates(rows):
            resid = here.run(rows, hooks_of(part))
        found[part.window.index] = logits_after(model, resid, here.prompts.last[rows])
    experiment.workers.add_up([found])
    return found


def _is_ablated_where_unreached(experiment: Experiment) -> bool:
    """Whether what no clean input reaches writes what it writes ablated, and can be left out.

    Not where that is no run's, nor that of a run with gates of its own; nor where one norm spans
    all heads, so that each answers to what the others read.
    """
    model = experiment.model
    together = norms_heads_together(model.cfg, model.blocks[0].attn)
    return experiment.ablation == "corrupted" and not experiment.holds_gates and not together


def _edge_hooks(part: Part, edges: Bool[Tensor, "src dest"]) -> Hooks:
    """The hooks of a part's run with only `edges` intact."""
    experiment, rows = part.experiment, part.rows
    graph, ablated = experiment.graph, experiment.ablated
    read = reader(part, edges)
    made: dict[int, dict[str, Tensor]] = {}
    begun: dict[int, Tensor] = {}  # of what a layer's MLP reads: what its heads read as well

    def set_head_inputs(act: Tensor, hook: object, *, layer: int, read_as: str) -> Tensor:
        if layer not in made:  # one product for all, since it takes longest to go through changes
            columns, n_upstream = graph.head_destinations(layer), graph.n_upstream_of_heads(layer)
            with_mlp = slice(columns.start, columns.stop + graph.has_mlps)
            found = read.changes(0, n_upstream, with_mlp)
            every = found[: len(READS) * graph.n_heads].add_(ablated.resid_pre[layer, rows])
            begun[layer] = found[len(READS) * graph.n_heads :]
            every = every.permute(1, 2, 0, 3)
            made[layer] = dict(zip(READS, every.chunk(len(READS), dim=2), strict=True))
        return made[layer].pop(read_as)

    def set_mlp_input(act: Tensor, hook: object, *, layer: int) -> Tensor:
        resid = ablated.resid_pre if graph.parallel_attn_mlp else ablated.resid_mid
        column, end = graph.mlp_destination(layer), graph.n_upstream_of_mlp(layer)
        first = graph.n_upstream_of_heads(layer) if layer in begun else 0
        found = read.changes(first, end, slice(column, column + 1))
        return found.add_(resid[layer, rows]).add_(begun.pop(layer, 0))[0]

    def set_final(act: Tensor, hook: object) -> Tensor:
        last = slice(graph.n_destinations - 1, graph.n_destinations)
        return read.changes(0, graph.n_sources, last)[0].add_(ablated.resid_final[rows])

    hooks: Hooks = [*read.noting]
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        for name in READS:
            bound = partial(set_head_inputs, layer=layer, read_as=name)
            hooks.append((f"{block}.hook_{name}_input", bound))
        if graph.has_mlps:
            hooks.append((f"{block}.hook_mlp_in", partial(set_mlp_input, layer=layer)))
    return [*hooks, (f"blocks.{graph.n_layers - 1}.hook_resid_post", set_final)]


def _node_hooks(part: Part, nodes: Bool[Tensor, " src"]) -> Hooks:
    experiment, rows = part.experiment, part.rows
    graph, ablated = experiment.graph, experiment.ablated

    def put_in(act: Tensor, hook: object, *, place: Tensor) -> Tensor:
        return place

    def put_heads_in(z: Tensor, hook: object, *, layer: int) -> Tensor:
        kept = nodes[graph.head_sources(layer)].to(z.device)
        return torch.where(kept[:, None], z, ablated.z[layer, rows])

    hooks: Hooks = []
    if not nodes[0]:
        embed = partial(put_in, place=ablated.embed[rows])
        hooks.append(("blocks.0.hook_resid_pre", embed))
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        hooks.append((f"{block}.attn.hook_z", partial(put_heads_in, layer=layer)))
        if graph.has_mlps and not nodes[graph.mlp_source(layer)]:
            mlp_out = partial(put_in, place=ablated.mlp_out[layer, rows])
            hooks.append((f"{block}.hook_mlp_out", mlp_out))
    return hooks


def attention_hooks(part: Part, kept: Bool[Tensor, "batch layer head query_pos key_pos"]) -> Hooks:
    """Returns the hooks of a part's run in which only the `kept` attention edges are intact.

    Args:
        part: A part of an experiment.
        kept: Attention edges of all prompts of the experiment.
    """
    experiment, rows, n_before = part.experiment, part.rows, part.window.n_before
    terms, kept = experiment.ablated.attention, part.window.pairs(kept, 0)
    now: dict[str, Tensor] = {}

    def note(act: Tensor, hook: object, *, name: str) -> None:
        now[name] = act

    def set_z(z: Tensor, hook: object, *, layer: int) -> Tensor:
        mask = kept[:, layer].to(z.dtype)
        value = attended_value(experiment.model, now.pop("value"))
        value = torch.cat([terms.value[layer, rows, :n_before], value], dim=1)
        live = torch.einsum("bhqk,bkhe->bqhe", mask * now.pop("pattern"), value)
        return live + terms.add_up(layer, 1 - mask, rows)

    hooks: Hooks = []
    for layer in range(experiment.graph.n_layers):
        attn = f"blocks.{layer}.attn"
        hooks += [
            (f"{attn}.hook_v", partial(note, name="value")),
            (f"{attn}.hook_pattern", partial(note, name="pattern")),
            (f"{attn}.hook_z", partial(set_z, layer=layer)),
        ]
    return hooks
