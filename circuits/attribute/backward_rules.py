"""Rules that stand in for derivatives in the backward pass, while the forward pass stays as it is.

A derivative describes a small change; taking a component away is a large one. Gradient interaction
modifications (circuits/attribute/gim.py) and relevance patching (circuits/attribute/relp.py) put
other factors in place of some derivatives:

- norms: the scale that a norm divides by is a constant; the mean is still subtracted;
- softmax: the Jacobian diag(p) - p p^T is taken at p = softmax(s / T), without a factor 1 / T;
- queries, keys and values: the gradient is multiplied by a share of each;
- gated MLPs: so are the gradients at both factors of the product;
- activation functions: act(x) counts as c x with the constant c = act(x) / x, and c = 0 at x = 0.

The rules are hooks of a run, behind all its others: the gradient that is taken at q, k or v has its
share in it, and nothing of the model is changed. What a hook returns has the value that it was
given, bit for bit.

A head of a gated model computes A P v, with A the gate and P the softmax. A keeps the derivative
that it has otherwise (straight-through, or none where it is frozen or held) and P has the softmax's
rule. A belongs to the pattern and gets no share of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.gate.gate import is_gated
from circuits.graph import READS
from circuits.models.anatomy import has_mlps, norm_gain, subtracts_mean
from circuits.models.backend import Hooks, Model, attention_layers, backend_of


@dataclass(frozen=True)
class BackwardRules:
    """Which rules hold; all derivatives are as they are by default.

    Attributes:
        constant_scales: Whether the scales of norms are constants.
        temperature: T of the softmax's Jacobian.
        shares: What the gradients at queries, keys and values are multiplied by, under the names
            `q`, `k` and `v`.
        product_share: What the gradients at the factors of gated MLPs are multiplied by.
        constant_slopes: Whether act(x) / x is a constant.
    """

    constant_scales: bool = False
    temperature: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    product_share: float = 1.0
    constant_slopes: bool = False

    def hooks(self, model: Model) -> Hooks:
        """Returns the hooks for one run, to stand behind all others of that run."""
        hooks = self.norm_hooks(model)
        for layer, attn in enumerate(attention_layers(model)):
            block = f"blocks.{layer}"
            hooks += [
                (f"{block}.attn.hook_{read}", partial(_shared, share=self.shares[read]))
                for read in READS
                if read in self.shares
            ]
            if self.temperature != 1:
                hooks += _softmax_hooks(f"{block}.attn", attn, self.temperature)
            if has_mlps(model.cfg):
                hooks += self._mlp_hooks(f"{block}.mlp", gated=bool(model.cfg.gated_mlp))
        return hooks

    def norm_hooks(self, model: Model) -> Hooks:
        """Returns those of the hooks that stand in norms."""
        hooks: Hooks = []
        modules: Iterator[Any] = model.modules()
        for norm in modules if self.constant_scales else ():
            if hasattr(norm, "hook_out") and hasattr(norm, "hook_scale"):
                hooks += _bridge_norm_hooks(model.cfg, norm)
            elif hasattr(norm, "hook_scale"):
                hooks.append((norm.hook_scale.name, lambda scale, hook: scale.detach()))
        return hooks

    def check(self, model: Model) -> None:
        """Refuses a model in which a rule would not act.

        Raises:
            ValueError: attention, an MLP or a norm does not compute through its hook points.
        """
        if (reason := self._why_not(model)) is not None:
            raise ValueError(
                f"{model.cfg.model_name} {reason}, so its derivatives cannot be replaced; use the "
                "method 'attribution_patching' or 'local_patching'"
            )

    def _why_not(self, model: Model) -> str | None:
        if self.temperature != 1 and not is_gated(model):
            for attn in attention_layers(model):
                if (held := backend_of(model).why_not_gated(attn)) is not None:
                    return f"has attention that takes no change of its pattern ({held})"
        if self.constant_scales:
            for path, module in model.named_modules():
                is_norm = "norm" in type(module).__name__.lower()
                wrapped = path.endswith("._original_component")  # in a Bridge's own module
                if is_norm and not wrapped and not hasattr(module, "hook_scale"):
                    return f"has a norm without hook points ({path})"
        if self.constant_slopes and (model.cfg.act_fn or "").endswith("_ln"):
            return f"has a norm inside its MLPs ({model.cfg.act_fn})"
        names = {name for name, _ in self.hooks(model)}
        names -= {name for name, _ in self.norm_hooks(model)}  # some are in no block
        seen: set[str] = set()
        known: Hooks = [
            (name, partial(_note_name, seen, name)) for name in names & set(model.hook_dict)
        ]
        if known:
            tokens = torch.zeros(1, 1, dtype=torch.long, device=model.W_E.device)
            with torch.no_grad():
                model.run_with_hooks(tokens, fwd_hooks=known)
        missing = sorted(names - seen)
        return f"does not show {', '.join(missing)}" if missing else None

    def _mlp_hooks(self, mlp: str, *, gated: bool) -> Hooks:
        factors = [f"{mlp}.hook_pre", f"{mlp}.hook_pre_linear"] if gated else [f"{mlp}.hook_pre"]
        hooks: Hooks = []
        if gated and self.product_share != 1:
            hooks += [(name, partial(_shared, share=self.product_share)) for name in factors]
        if self.constant_slopes:
            seen: list[Tensor] = []
            hooks += [(name, partial(_note, seen)) for name in factors]
            hooks.append((f"{mlp}.hook_post", partial(_with_constant_slope, seen=seen)))
        return hooks


PLAIN = BackwardRules()
"""All derivatives as they are."""


class _WithSlopes(torch.autograd.Function):
    """A value whose derivatives by some inputs are given, element by element."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs_and_slopes: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_and_slopes[len(inputs_and_slopes) // 2 :])
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        own = ctx.saved_tensors
        return (None, *(grads[0] * slope for slope in own), *(None for _ in own))


class _SoftmaxAt(torch.autograd.Function):
    """A pattern, gated or not, with the Jacobian of a softmax that is handed in."""

    @staticmethod
    def forward(
        ctx: Any,
        pattern: Float[Tensor, "batch head query_pos key_pos"],
        _scores: Float[Tensor, "batch head query_pos key_pos"],
        gate: Float[Tensor, "batch head query_pos key_pos"] | None,
        softmax: Float[Tensor, "batch head query_pos key_pos"],
        at: Float[Tensor, "batch head query_pos key_pos"],
    ) -> Tensor:
        ctx.save_for_backward(gate, softmax, at)
        return pattern.view_as(pattern)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, softmax, at = ctx.saved_tensors
        grad = grads[0]
        at_gate = None if gate is None else grad * softmax
        grad = grad if gate is None else grad * gate
        at_scores = at * (grad - (at * grad).sum(dim=-1, keepdim=True))
        return None, at_scores, at_gate, None, None


def _note(seen: list[Tensor], act: Tensor, hook: object) -> None:
    seen.append(act)


def _note_name(seen: set[str], name: str, act: Tensor, hook: object) -> None:
    seen.add(name)


def _shared(act: Tensor, hook: object, *, share: float) -> Tensor:
    return _WithSlopes.apply(act.detach(), act, act.new_tensor(share))


def _with_constant_slope(post: Tensor, hook: object, *, seen: list[Tensor]) -> Tensor:
    pre, *linear = seen
    seen.clear()
    # In a gated MLP, act(pre) is the derivative by what it is multiplied with.
    act = torch.autograd.grad(post.sum(), linear, retain_graph=True)[0] if linear else post.detach()
    slope = torch.where(pre == 0, 0.0, act / pre).detach()
    if not linear:
        return _WithSlopes.apply(post.detach(), pre, slope)
    return _WithSlopes.apply(post.detach(), pre, *linear, slope * linear[0].detach(), act)


def _softmax_hooks(name: str, attn: Any, temperature: float) -> Hooks:
    seen: list[Tensor] = []  # the scores, then the gate if there is one

    def replace(pattern: Tensor, hook: object) -> Tensor:
        scores, *gate = seen
        seen.clear()
        sinks = getattr(attn, "sinks", None)  # scores of one key more, which has no value

        def softmax(temperature: float) -> Tensor:
            with torch.no_grad():
                every = scores
                if sinks is not None:
                    sink = sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
                    every = torch.cat([scores, sink], dim=-1)
                # A query that sees no key at all attends to nothing.
                found = (every / temperature).softmax(dim=-1).nan_to_num(0)
            return found[..., : scores.shape[-1]].to(pattern.dtype)

        gate = gate[0] if gate else None
        return _SoftmaxAt.apply(pattern.detach(), scores, gate, softmax(1), softmax(temperature))

    points = ["hook_attn_scores", "hook_gate"] if is_gated(attn) else ["hook_attn_scores"]
    hooks: Hooks = [(f"{name}.{point}", partial(_note, seen)) for point in points]
    return [*hooks, (f"{name}.hook_pattern", replace)]


def _bridge_norm_hooks(cfg: Any, norm: Any) -> Hooks:
    """Hooks around a norm that computes in the Hugging Face model, and only shows its scale."""
    seen: list[Tensor] = []  # the input, then the scale

    def replace(normed: Tensor, hook: object) -> Tensor:
        act, scale = seen
        seen.clear()
        gain = norm_gain(cfg, norm)
        centred = act - act.mean(dim=-1, keepdim=True) if subtracts_mean(cfg) else act
        slope = (1 if gain is None else gain.detach()) / scale.detach()
        return _WithSlopes.apply(normed.detach(), centred, slope)

    points = (norm.hook_in.name, norm.hook_scale.name)
    hooks: Hooks = [(name, partial(_note, seen)) for name in points]
    return [*hooks, (norm.hook_out.name, replace)]
