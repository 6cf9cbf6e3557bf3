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

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.choices import GATES, Ablation, Gates, check_choice
from circuits.gate.gate import hold_gates, is_gated
from circuits.graph import READS, Graph
from circuits.intervene.activations import (
    Activations,
    ablated_activations,
    attended_value,
    logits_after,
    noting_changes,
    record_gates,
    row_batches,
    run_to_final,
)
from circuits.intervene.behind_heads import ablated_totals, read_inputs
from circuits.intervene.check_model import check_model
from circuits.metrics import METRICS
from circuits.models.anatomy import has_mlps, is_parallel, why_not_a_sum
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
    """

    model: Model
    graph: Graph
    prompts: Prompts
    metric: str
    ablation: Ablation | str
    ablated: Activations
    workers: Workers = ALONE
    gates: Gates | str = "follow"

    def own_batches(self) -> list[slice]:
        """Returns the batches of prompts that this process runs."""
        batches = row_batches(self.graph, self.prompts, self.model.cfg.d_model, self.workers.count)
        return [rows for _, rows in self.workers.own(batches)]

    @cached_property
    def clean_gates(self) -> Bool[Tensor, "layer batch head query_pos key_pos"]:
        """Which gates of a sparse model are open in the whole model's run."""
        return record_gates(self.model, self.graph, self.prompts)

    def hold_gates(self, rows: slice) -> AbstractContextManager[None]:
        """Returns a context for runs of some prompts, in which gates that are to be held are."""
        if self.gates == "follow" or not is_gated(self.model):
            return nullcontext()
        return hold_gates(self.model, self.clean_gates[:, rows])

    @cached_property
    def clean_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """The whole model's logits at the answer position."""
        with torch.no_grad():
            return _logits(self, lambda _rows: [])

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
) -> Experiment:
    """Returns an experiment with the clean and the ablated run, made once.

    Args:
        model: The model under study; put into evaluation mode.
        prompts: The prompts.
        metric: A name in `circuits.metrics.METRICS`.
        ablation: What components outside a circuit write.
        gates: What the gates of a sparse model do while a circuit runs; a dense model has none.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`.

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
    edges, mask = edges & experiment.graph.mask, experiment.graph.mask
    if torch.equal(edges, mask & edges.any(dim=1, keepdim=True)):
        return run_nodes(experiment, edges.any(dim=1))
    return _measure(experiment, lambda rows: _edge_hooks(experiment, edges, rows), split_heads=True)


@torch.no_grad()
def run_nodes(experiment: Experiment, nodes: Bool[Tensor, " src"]) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only `nodes` intact, each with all of its edges.

    The special case of `run_edges` in which every destination reads the same sources, so that a
    layer's heads share one residual stream: it takes about as long as a run of the model.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    return _measure(experiment, lambda rows: _node_hooks(experiment, nodes, rows))


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
    return _measure(experiment, lambda rows: attention_hooks(experiment, kept[rows], rows))


def _measure(
    experiment: Experiment, hooks_of: Callable[[slice], Hooks], *, split_heads: bool = False
) -> Float[Tensor, " batch"]:
    with component_hooks(experiment.model, split_heads=split_heads):
        values = experiment.score(_logits(experiment, hooks_of))
    return _checked(experiment, values, "partly ablated")


def _logits(
    experiment: Experiment, hooks_of: Callable[[slice], Hooks]
) -> Float[Tensor, "batch d_vocab"]:
    """The logits at the answer position of all prompts, run a batch at a time with hooks."""
    model, prompts = experiment.model, experiment.prompts
    found = model.W_U.new_zeros(len(prompts), model.W_U.shape[-1])
    for rows in experiment.own_batches():
        with experiment.hold_gates(rows):
            resid = run_to_final(model, prompts.clean[rows], hooks_of(rows))
        found[rows] = logits_after(model, resid, prompts.last[rows])
    experiment.workers.add_up([found])
    return found


def _edge_hooks(experiment: Experiment, edges: Bool[Tensor, "src dest"], rows: slice) -> Hooks:
    graph, ablated = experiment.graph, experiment.ablated
    change, noting = noting_changes(experiment.model, graph, ablated, rows)
    weight = edges.to(device=change.device, dtype=change.dtype)
    without = ablated_totals(experiment.model, ablated.z[:, rows])

    def inputs(base: Tensor, n_upstream: int, columns: slice) -> Float[Tensor, "dest batch pos d"]:
        return read_inputs(
            experiment.model,
            graph,
            weight[:n_upstream, columns],
            change[:n_upstream],
            base,
            without,
        )

    made: dict[int, dict[str, Tensor]] = {}

    def set_head_inputs(act: Tensor, hook: object, *, layer: int, read: str) -> Tensor:
        if layer not in made:  # one product for all three, so that changes are read once
            base, columns = ablated.resid_pre[layer, rows], graph.head_destinations(layer)
            every = inputs(base, graph.n_upstream_of_heads(layer), columns).permute(1, 2, 0, 3)
            made[layer] = dict(zip(READS, every.chunk(len(READS), dim=2), strict=True))
        return made[layer].pop(read)

    def set_mlp_input(act: Tensor, hook: object, *, layer: int) -> Tensor:
        resid = ablated.resid_pre if graph.parallel_attn_mlp else ablated.resid_mid
        column = graph.mlp_destination(layer)
        columns = slice(column, column + 1)
        return inputs(resid[layer, rows], graph.n_upstream_of_mlp(layer), columns)[0]

    def set_final(act: Tensor, hook: object) -> Tensor:
        last = slice(graph.n_destinations - 1, graph.n_destinations)
        return inputs(ablated.resid_final[rows], graph.n_sources, last)[0]

    hooks: Hooks = [*noting]
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        for read in READS:
            bound = partial(set_head_inputs, layer=layer, read=read)
            hooks.append((f"{block}.hook_{read}_input", bound))
        if graph.has_mlps:
            hooks.append((f"{block}.hook_mlp_in", partial(set_mlp_input, layer=layer)))
    return [*hooks, (f"blocks.{graph.n_layers - 1}.hook_resid_post", set_final)]


def _node_hooks(experiment: Experiment, nodes: Bool[Tensor, " src"], rows: slice) -> Hooks:
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


def attention_hooks(
    experiment: Experiment, kept: Bool[Tensor, "batch layer head query_pos key_pos"], rows: slice
) -> Hooks:
    """Returns the hooks of a run in which only the `kept` attention edges of `rows` are intact."""
    terms = experiment.ablated.attention
    now: dict[str, Tensor] = {}

    def note(act: Tensor, hook: object, *, name: str) -> None:
        now[name] = act

    def set_z(z: Tensor, hook: object, *, layer: int) -> Tensor:
        mask = kept[:, layer].to(z.dtype)
        value = attended_value(experiment.model, now.pop("value"))
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
