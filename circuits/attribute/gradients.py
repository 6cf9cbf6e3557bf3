"""One backward pass that scores every edge: the core that the gradient methods share.

An edge u->v is scored by the change that ablation makes in what u writes, times the gradient of
the metric at what v reads, summed over positions. The model runs as it is, with no input of its
own for every head: a gradient is taken at each head's q, k and v, and what it is at the head's
input follows through W_Q, W_K, W_V and the Jacobian of the layer norm. That is done a layer at a
time, and contracted with all upstream changes in one matrix product. Changes of heads with a norm
behind them are first taken through its Jacobian in the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribute.backward_rules import PLAIN, BackwardRules
from circuits.graph import READS
from circuits.intervene.activations import (
    attended_value,
    logits_after,
)
from circuits.intervene.behind_heads import linear_changes
from circuits.intervene.experiment import Experiment
from circuits.intervene.window import Part
from circuits.metrics import METRICS
from circuits.models.anatomy import (
    has_whole_weights,
    norm_before_heads,
    norm_gain,
    subtracts_mean,
)
from circuits.models.backend import Hooks, Model, component_hooks


@dataclass(frozen=True)
class Run:
    """What one forward and one backward pass leave, for a batch of prompts.

    Attributes:
        logits: The logits at the answer position.
        acts: Activations by hook name: every `resid_pre`, pattern, value, z, `mlp_in`, `mlp_out`
            and the final residual stream.
        gradients: Gradients of the metric, summed over the batch, by hook name: every q, k, v, z,
            `mlp_in`, `mlp_out` and the final residual stream.
    """

    logits: Float[Tensor, "batch d_vocab"]
    acts: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def z(self, layer: int) -> Float[Tensor, "batch pos head d_head"]:
        """Returns what a layer's heads attend to."""
        return self.acts[f"blocks.{layer}.attn.hook_z"]


def run_backward(
    experiment: Experiment,
    rows: slice,
    hooks: Hooks,
    clean_logits: Float[Tensor, "batch d_vocab"] | None = None,
    rules: BackwardRules = PLAIN,
) -> Run:
    """Runs the clean prompts with `hooks`, and back from the metric.

    Args:
        experiment: What is studied.
        rows: The prompts to run.
        hooks: Hooks that change or note activations; each sees them before a gradient is taken.
        clean_logits: The whole model's, for metrics that refer to them; this run's if left out.
        rules: What stands in for derivatives on the way back.
    """
    model, graph, prompts = experiment.model, experiment.graph, experiment.prompts
    batch = prompts.subset(range(rows.start, rows.stop))
    differentiated: dict[str, Tensor] = {}
    acts: dict[str, Tensor] = {}

    def differentiate(act: Tensor, hook: object, *, name: str) -> Tensor:
        # On a TransformerBridge an act may be a view, which is on the path only if it is returned,
        # and an MLP's input may be the residual stream itself, whose gradient holds more.
        act = act.clone() if name.endswith("hook_mlp_in") else act
        differentiated[name] = act
        return act

    def keep(act: Tensor, hook: object, *, name: str) -> None:
        acts[name] = act.detach()

    names = [f"blocks.{graph.n_layers - 1}.hook_resid_post"]
    kept = []
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        names += [f"{block}.attn.hook_{what}" for what in (*READS, "z")]
        names += [f"{block}.hook_mlp_in", f"{block}.hook_mlp_out"] if graph.has_mlps else []
        kept += [f"{block}.hook_resid_pre", f"{block}.attn.hook_pattern"]

    def with_gradient(act: Tensor, hook: object) -> Tensor:
        return act.detach().requires_grad_()

    before: Hooks = [*hooks, ("blocks.0.hook_resid_pre", with_gradient)]
    noting: Hooks = [(name, partial(differentiate, name=name)) for name in names]
    noting += [(name, partial(keep, name=name)) for name in kept]
    with (
        component_hooks(model, split_heads=False),
        experiment.hold_gates(rows),
        torch.enable_grad(),
        parameters_without_gradient(model),
    ):
        # The unembedding is by far the widest matrix: it is run at one position a prompt.
        resid = experiment.run(rows, before + noting + rules.hooks(model))
        with model.hooks(fwd_hooks=rules.norm_hooks(model)):
            logits = logits_after(model, resid, batch.last)
        reference = logits.detach() if clean_logits is None else clean_logits
        metric = METRICS[experiment.metric](logits, batch, reference).sum()
        found = torch.autograd.grad(
            metric, list(differentiated.values()), allow_unused=True, materialize_grads=True
        )
    gradients = dict(zip(differentiated, found, strict=True))
    acts |= {name: act.detach() for name, act in differentiated.items()}
    return Run(logits.detach(), acts, gradients)


@torch.no_grad()
def add_edge_scores(
    experiment: Experiment,
    edges: Float[Tensor, "src dest"],
    run: Run,
    change: Float[Tensor, "src batch pos d_model"],
    *,
    weight: float = 1.0,
    sources: slice = slice(None),
    rules: BackwardRules = PLAIN,
) -> None:
    """Adds to `edges` the scores of one run, summed over its prompts.

    Args:
        experiment: What is studied.
        edges: Where the scores are added.
        run: The gradients.
        change: What each source writes, clean minus ablated; heads before the norm behind them.
        weight: Factor of the scores.
        sources: The rows to add; those of every source if left out.
        rules: What stood in for derivatives in the run.
    """
    model, graph, constant = experiment.model, experiment.graph, rules.constant_scales
    flat = linear_changes(model, graph, change, run.z, constant_scale=constant).flatten(1)

    def contract(gradient: Tensor, n_upstream: int, columns: slice) -> None:
        """Gradient `[dest batch*pos d_model]` against all upstream changes."""
        upstream = range(graph.n_sources)[sources]
        chosen = slice(upstream.start, min(upstream.stop, n_upstream))
        if chosen.start < chosen.stop:
            scores = flat[chosen] @ gradient.flatten(1).T
            edges[chosen, columns] += weight * scores.to(edges.dtype)

    for layer in range(graph.n_layers):
        columns = slice(
            graph.read_destinations(layer, "q").start, graph.read_destinations(layer, "v").stop
        )
        gradient = _at_head_inputs(model, run, layer, constant_scale=constant)
        contract(gradient, graph.n_upstream_of_heads(layer), columns)
        if graph.has_mlps:
            column = graph.mlp_destination(layer)
            at_mlp = run.gradients[f"blocks.{layer}.hook_mlp_in"][None]
            contract(at_mlp, graph.n_upstream_of_mlp(layer), slice(column, column + 1))
    last = graph.n_destinations - 1
    final = run.gradients[f"blocks.{graph.n_layers - 1}.hook_resid_post"][None]
    contract(final, graph.n_sources, slice(last, last + 1))


def _at_head_inputs(
    model: Model, run: Run, layer: int, *, constant_scale: bool
) -> Float[Tensor, "dest batch_pos d_model"]:
    """Gradients at the q inputs of all heads of a layer, then at their k and v inputs.

    With x the input less its mean (nothing less for an RMS norm), s its norm's scale and
    n = x / s, the Jacobian of the norm is (1 - n n^T / d_model) / s after the same centring;
    1 / s where the scale counts as a constant.
    """
    attn, cfg = model.blocks[layer].attn, model.cfg
    # A TransformerBridge gives the matrices of shared keys and values once.
    weights = torch.cat(
        [
            matrix.repeat_interleave(cfg.n_heads // len(matrix), dim=0)
            for matrix in (attn.W_Q, attn.W_K, attn.W_V)
        ]
    )  # [dest, d_model, d_head]
    slopes = torch.cat(
        [run.gradients[f"blocks.{layer}.attn.hook_{read}"].flatten(0, 1) for read in READS], dim=1
    ).transpose(0, 1)  # [dest, batch*pos, d_head]
    norm = norm_before_heads(cfg, model.blocks[layer])
    if norm is None:
        return torch.bmm(slopes, weights.mT)
    gain = norm_gain(cfg, norm)
    if gain is not None:
        weights = weights * gain[:, None]
    if subtracts_mean(cfg):
        weights = weights - weights.mean(dim=1, keepdim=True)
    normalized, scale = _normalised(model, run.acts[f"blocks.{layer}.hook_resid_pre"].flatten(0, 1))
    gradients = torch.bmm(slopes / scale, weights.mT)
    if constant_scale:
        return gradients
    along = torch.einsum("hpd,pd->hp", gradients, normalized) / cfg.d_model
    return gradients.addcmul_(along[..., None], normalized, value=-1)


def _normalised(
    model: Model, resid: Float[Tensor, "rows d_model"]
) -> tuple[Float[Tensor, "rows d_model"], Float[Tensor, "rows 1"]]:
    """What a norm makes of the stream before its gain, and the scale that it divides by."""
    if subtracts_mean(model.cfg):
        resid = resid - resid.mean(dim=-1, keepdim=True)
    scale = (resid.square().mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
    return resid / scale, scale


def attention_edge_scores(
    part: Part, run: Run, clean: Run, layer: int
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Returns each attention edge's change, clean minus ablated, times the gradient at its z.

    Queries are those of the part's window, keys all that they see.
    """
    experiment, rows, block = part.experiment, part.rows, f"blocks.{layer}.attn"
    ablated = experiment.ablated.attention
    gradient = run.gradients[f"{block}.hook_z"]
    pattern = clean.acts[f"{block}.hook_pattern"]
    value = attended_value(experiment.model, clean.acts[f"{block}.hook_v"])
    value = torch.cat([ablated.value[layer, rows, : part.window.n_before], value], dim=1)
    kept = pattern * torch.einsum("bqhe,bkhe->bhqk", gradient, value)
    return kept - ablated.dot(layer, gradient, rows)


@torch.no_grad()
def check_differentiable(model: Model) -> None:
    """Refuses a model whose gradients at head inputs are not known here.

    Norms are run on one vector: what they make of it must be what the gradients are taken of.

    Raises:
        ValueError: an unknown normalisation, or weights packed into four bits.
    """
    subtracts_mean(model.cfg)
    if not has_whole_weights(model.cfg):
        raise ValueError("attribution needs whole weights; load the model in bfloat16, not 4 bits")
    vector = torch.arange(model.cfg.d_model, device=model.W_E.device)[None].sin().to(model.W_E)
    tolerance = 1e-3 if vector.dtype in (torch.float32, torch.float64) else 0.1
    for layer, block in enumerate(model.blocks):
        norm = norm_before_heads(model.cfg, block)
        if norm is None:
            continue
        gain = norm_gain(model.cfg, norm)
        taken = _normalised(model, vector)[0] * (1 if gain is None else gain)
        real = (norm(vector[None]) - norm(-vector[None]))[0] / 2  # without its bias
        if (real - taken).abs().max() > tolerance * real.abs().max().clamp(min=1.0):
            raise ValueError(
                f"the norm before the heads of layer {layer} of {model.cfg.model_name} does not "
                "compute what its config says, so gradients behind it are not known; "
                "docs/models.md says where to add an architecture"
            )


@contextmanager
def parameters_without_gradient(model: torch.nn.Module) -> Iterator[None]:
    """Spares the backward pass the gradients of weights, and their memory."""
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
