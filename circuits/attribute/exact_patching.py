"""Exact patching: what ablating one component really does, by running the model without it.

The `exact_*_effects` functions run the whole model once for each component asked for, in the
same way as circuits are run: slow, and the referee of everything else. The method
`exact_patching` scores every component of a graph. It runs a destination alone on the input that
lacks a source, then only the layers from there on, for many sources at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor

from circuits.attribute.gradients import Run, check_differentiable, run_backward
from circuits.attribute.local_patching import logit_effects
from circuits.attribute.responses import (
    Changes,
    check_runnable,
    head_responses,
    mlp_responses,
    run_from,
    source_chunks,
)
from circuits.attribute.scores import Scores
from circuits.attribute.totals import of_length, sums_like
from circuits.files import write_bytes
from circuits.graph import READS
from circuits.intervene.ablate import run_attention_edges, run_edges
from circuits.intervene.activations import (
    attended_value,
    logits_after,
    noting_changes,
)
from circuits.intervene.behind_heads import lone_changes
from circuits.intervene.experiment import Experiment
from circuits.metrics import METRICS
from circuits.models.anatomy import norms_heads_together
from circuits.models.backend import Hooks, component_hooks


def exact_edge_effects(
    experiment: Experiment, edges: Iterable[Sequence[int]]
) -> Float[Tensor, " edges"]:
    """Returns for each edge `(src, dest)` how far the metric falls when it alone is ablated.

    The same quantity, sign and unit as `Scores.edges`: the mean over prompts.
    """
    full = experiment.full.mean()
    found = []
    for src, dest in edges:
        kept = experiment.graph.mask.clone()
        kept[src, dest] = False
        found.append(full - run_edges(experiment, kept).mean())
    return torch.stack(found).cpu()


def exact_node_effects(experiment: Experiment, nodes: Iterable[int]) -> Float[Tensor, " nodes"]:
    """Returns for each source how far the metric falls when it alone is ablated."""
    full = experiment.full.mean()
    found = []
    for row in nodes:
        kept = experiment.graph.mask.clone()
        kept[row] = False
        found.append(full - run_edges(experiment, kept).mean())
    return torch.stack(found).cpu()


def exact_attention_edge_effects(
    experiment: Experiment, attention_edges: Int[Tensor, "edges 4"]
) -> Float[Tensor, " edges"]:
    """Returns for each (layer, head, query, key) how far the metric falls without it alone.

    The prompts of the experiment must share one template, or the positions mean nothing.

    Raises:
        ValueError: the prompts have several templates.
    """
    templates = set(experiment.prompts.templates)
    if len(templates) > 1:
        raise ValueError(
            f"the prompts have {len(templates)} templates; an attention edge is a pair of "
            "positions, which mean the same only within one template: take a subset of one"
        )
    cfg = experiment.model.cfg
    batch, pos = experiment.prompts.clean.shape
    shape = (batch, cfg.n_layers, cfg.n_heads, pos, pos)
    kept = torch.ones(shape, dtype=torch.bool, device=experiment.full.device)
    full = experiment.full.mean()
    found = []
    for layer, head, query, key in attention_edges.tolist():
        kept[:, layer, head, query, key] = False
        found.append(full - run_attention_edges(experiment, kept).mean())
        kept[:, layer, head, query, key] = True
    return torch.stack(found).cpu()


def exact_patching(
    experiment: Experiment,
    *,
    attention_edges: bool = True,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Scores:
    """Returns what ablating each node, edge and attention edge alone does to the metric.

    About one run of half the model for each: minutes for a small model, hours for a large one.

    Args:
        experiment: What is studied.
        attention_edges: Whether attention edges are measured too.
        checkpoint: A file that keeps what is measured. An interrupted call that is repeated with
            the same file goes on where it stopped.
        on_step: Called with the number of steps done and of all steps.

    Raises:
        ValueError: a score is not finite, the model's heads cannot be run on their own, or the
            checkpoint is of another experiment or of several processes.
    """
    if checkpoint is not None and experiment.workers.count > 1:
        raise ValueError(
            "processes that share prompts cannot share a checkpoint; leave it out, or run one"
        )
    check_differentiable(experiment.model)
    check_runnable(experiment)
    graph, prompts, cfg = experiment.graph, experiment.prompts, experiment.model.cfg
    groups = prompts.groups()
    pos = prompts.clean.shape[1]
    sums = {
        "edges": sums_like(experiment.ablated.embed, graph.mask.shape),
        "nodes": sums_like(experiment.ablated.embed, torch.Size([graph.n_sources])),
    }
    if attention_edges:
        shape = torch.Size([len(groups), cfg.n_layers, cfg.n_heads, pos, pos])
        sums["attention_edges"] = sums_like(experiment.ablated.embed, shape)
    fingerprint = _fingerprint(experiment, attention_edges)
    n_done = _restore(checkpoint, sums, fingerprint)
    batches = experiment.own_batches()
    n_steps = len(batches) * (graph.n_layers + 1)
    on_step(n_done, n_steps)
    for number, rows in enumerate(batches):
        if n_done >= (number + 1) * (graph.n_layers + 1):
            continue
        change, noting = noting_changes(experiment.model, graph, experiment.ablated, rows)
        clean = run_backward(experiment, rows, noting)
        change = lone_changes(experiment.model, graph, change, clean.z)
        later = _Later(experiment, clean, rows)
        for place in range(graph.n_layers + 1):
            step = number * (graph.n_layers + 1) + place
            if step < n_done:
                continue
            if place == graph.n_layers:
                sums["edges"][:, -1] += logit_effects(experiment, clean, change, rows)
                sums["nodes"][0] += later.without_input()
            else:
                _measure_layer(experiment, later, sums, change, place)
            _store(checkpoint, sums, fingerprint, step + 1)
            on_step(step + 1, n_steps)
    experiment.workers.add_up(sums.values())
    return Scores(
        graph=graph,
        edges=sums["edges"].cpu() / len(prompts),
        attention_edges={
            template: of_length(total, int(prompts.lengths[members[0]])).cpu() / len(members)
            for (template, members), total in zip(
                groups.items(), sums.get("attention_edges", []), strict=attention_edges
            )
        },
        method="exact_patching",
        ablation=experiment.ablation,
        n_prompts=len(prompts),
        node_scores=sums["nodes"].cpu() / len(prompts),
    ).check_finite()


class _Later:
    """The clean run of a batch, which can be run again from any layer with a change there."""

    def __init__(self, experiment: Experiment, clean: Run, rows: slice) -> None:
        self.experiment, self.clean, self.rows = experiment, clean, rows
        self.batch = experiment.prompts.subset(range(rows.start, rows.stop))
        self._whole = self._metric(clean.logits)

    def fall(
        self, layer: int, name: str, act: Float[Tensor, "change batch ..."]
    ) -> Float[Tensor, "change batch"]:
        """How far the metric falls when the activation `name` of a layer is `act`."""
        resid = self.clean.acts[f"blocks.{layer}.hook_resid_pre"].repeat(len(act), 1, 1)
        flat = act.flatten(0, 1)
        hooks: Hooks = [(f"blocks.{layer}.{name}", lambda _act, hook: flat)]
        return self._fall(resid, layer, hooks, len(act))

    def fall_without(
        self, layer: int, read: str, head: int, change: Changes
    ) -> Float[Tensor, "change batch"]:
        """How far the metric falls when one head's input lacks each change."""

        def lacking(act: Tensor, hook: object) -> Tensor:
            act = act.clone()  # [copies of the batch, pos, head, d_model]
            act[:, :, head] -= change.flatten(0, 1)
            return act

        resid = self.clean.acts[f"blocks.{layer}.hook_resid_pre"].repeat(len(change), 1, 1)
        hooks: Hooks = [(f"blocks.{layer}.hook_{read}_input", lacking)]
        with component_hooks(self.experiment.model):
            return self._fall(resid, layer, hooks, len(change))

    @torch.no_grad()
    def without_input(self) -> Tensor:
        """How far the metric falls, summed over prompts, when the input alone is ablated."""
        embed = self.experiment.ablated.embed[self.rows]
        return self._fall(embed, 0, [], 1).sum()

    @torch.no_grad()
    def _fall(self, resid: Tensor, layer: int, hooks: Hooks, copies: int) -> Tensor:
        final = run_from(self.experiment, self.rows, layer, resid, hooks)
        logits = logits_after(self.experiment.model, final, self.batch.last.repeat(copies))
        return torch.stack(
            [self._whole - self._metric(changed) for changed in logits.unflatten(0, (copies, -1))]
        )

    def _metric(self, logits: Tensor) -> Tensor:
        return METRICS[self.experiment.metric](logits, self.batch, self.clean.logits)


def _measure_layer(
    experiment: Experiment, later: _Later, sums: dict[str, Tensor], change: Changes, layer: int
) -> None:
    """Adds the effects of all edges into a layer, of its nodes and of its attention edges."""
    graph, clean, z = experiment.graph, later.clean, later.clean.z(layer)
    n_heads, rows = graph.n_heads, later.rows
    together = norms_heads_together(experiment.model.cfg, experiment.model.blocks[layer].attn)
    for chunk in source_chunks(graph.n_upstream_of_heads(layer), len(z)):
        for read in READS:
            if together and read != "v":  # no head can be run alone
                for head in range(n_heads):
                    falls = later.fall_without(layer, read, head, change[chunk])
                    column = graph.read_destinations(layer, read).start + head
                    sums["edges"][chunk, column] += falls.sum(dim=1)
                continue
            answers = head_responses(experiment, clean, rows, layer, read, change[chunk])
            first = graph.read_destinations(layer, read).start
            for head in range(n_heads):
                patched = z.repeat(len(answers), 1, 1, 1, 1)
                patched[..., head, :] = answers[..., head, :]
                falls = later.fall(layer, "attn.hook_z", patched).sum(dim=1)
                sums["edges"][chunk, first + head] += falls
    patched = z.repeat(n_heads, 1, 1, 1, 1)
    for head in range(n_heads):
        patched[head, :, :, head] = experiment.ablated.z[layer, rows][:, :, head]
    sums["nodes"][graph.head_sources(layer)] += later.fall(layer, "attn.hook_z", patched).sum(dim=1)
    if graph.has_mlps:
        column, row = graph.mlp_destination(layer), graph.mlp_source(layer)
        for chunk in source_chunks(graph.n_upstream_of_mlp(layer), len(z)):
            answers = mlp_responses(experiment, clean, rows, layer, change[chunk])
            sums["edges"][chunk, column] += later.fall(layer, "hook_mlp_out", answers).sum(dim=1)
        gone = experiment.ablated.mlp_out[layer, rows][None]
        sums["nodes"][row] += later.fall(layer, "hook_mlp_out", gone).sum()
    if "attention_edges" in sums:
        _measure_attention_edges(experiment, later, sums["attention_edges"], layer)


def _measure_attention_edges(
    experiment: Experiment, later: _Later, total: Tensor, layer: int
) -> None:
    z, block = later.clean.z(layer), f"blocks.{layer}.attn"
    acts, gone = later.clean.acts, experiment.ablated.attention
    pattern = acts[f"{block}.hook_pattern"]
    value = attended_value(experiment.model, acts[f"{block}.hook_v"])
    groups = list(experiment.prompts.groups())
    templates = experiment.prompts.templates[later.rows]
    group_of = torch.tensor([groups.index(name) for name in templates], device=z.device)
    for head, query, keys in _causal_chunks(z.shape[2], z.shape[1], len(z)):
        kept = pattern[:, head, query, keys, None] * value[:, keys, head]
        lost = gone.terms(layer, head, query, keys, later.rows)
        patched = z.repeat(kept.shape[1], 1, 1, 1, 1)
        patched[:, :, query, head] -= (kept - lost).transpose(0, 1)
        falls = later.fall(layer, "attn.hook_z", patched)
        total[:, layer, head, query, keys] += torch.zeros_like(
            total[:, layer, head, query, keys]
        ).index_add_(0, group_of, falls.T.to(total.dtype))


def _causal_chunks(n_heads: int, pos: int, n_prompts: int) -> Iterator[tuple[int, int, slice]]:
    """Yields (head, query, keys): all causal pairs of all heads, some keys at a time."""
    for head in range(n_heads):
        for query in range(pos):
            for keys in source_chunks(query + 1, n_prompts):
                yield head, query, keys


def _fingerprint(experiment: Experiment, attention_edges: bool) -> str:
    """Tells one experiment from another, by what it runs and what comes out."""
    digest = hashlib.sha256(
        f"{experiment.metric} {experiment.ablation} {experiment.gates} {attention_edges} "
        f"{experiment.graph}".encode()
    )
    for tensor in (experiment.prompts.clean, experiment.ablated.embed, experiment.clean_logits):
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _restore(checkpoint: Path | None, sums: dict[str, Tensor], fingerprint: str) -> int:
    """Fills `sums` from the checkpoint; returns how many steps it holds."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    held = load(checkpoint.read_bytes())
    if bytes(held["fingerprint"].tolist()).decode() != fingerprint:
        raise ValueError(
            f"{checkpoint} holds the effects of another model, task or set of prompts; "
            "give another file, or remove it"
        )
    for name, total in sums.items():
        total.copy_(held[name])
    return int(held["n_done"])


def _store(checkpoint: Path | None, sums: dict[str, Tensor], fingerprint: str, n_done: int) -> None:
    if checkpoint is not None:
        held = {name: total.cpu() for name, total in sums.items()}
        held["n_done"] = torch.tensor(n_done)
        held["fingerprint"] = torch.tensor(list(fingerprint.encode()), dtype=torch.uint8)
        write_bytes(checkpoint, save(held))
