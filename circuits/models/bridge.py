"""The `Backend` of TransformerBridges (circuits/models/backend.py says what each function is).

A TransformerBridge runs the Hugging Face model's own code, from the tokens on: a part of it is run
by putting its input into a run of the whole. Its modules pass attributes that they lack on to the
module that they wrap, so what is put on them must not go through `setattr`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformers import PretrainedConfig

from circuits.models.backend import Hooks, Stream, component_hooks
from circuits.models.build_bridge import parameters_around
from circuits.models.hf_files import is_tied, probe_tokens
from circuits.models.hf_weights import Rearrangement, learn_rearrangement


def run_heads(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    resid: Stream,
    *,
    read: str,
    changed: Stream,
) -> Float[Tensor, "batch pos head d_head"]:
    """Runs the layers up to this one, whose heads are given what they read."""
    z: list[Tensor] = []
    hooks: Hooks = [
        (f"blocks.{layer}.attn.hook_z", lambda act, hook: z.append(act)),
        (
            f"blocks.{layer}.attn.hook_{read}_input",
            lambda act, hook: changed[:, :, None].expand_as(act),
        ),
    ]
    with component_hooks(model):
        _run(model, tokens, layer, resid, hooks, last=layer)
    return z[0]


def run_mlp(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
) -> Stream:
    """Runs the layers up to this one, whose MLP is given what it reads."""
    written: list[Tensor] = []
    hooks: Hooks = [
        (f"blocks.{layer}.hook_mlp_in", lambda act, hook: resid),
        (f"blocks.{layer}.hook_mlp_out", lambda act, hook: written.append(act)),
    ]
    with component_hooks(model, split_heads=False):
        _run(model, tokens, layer, resid, hooks, last=layer)
    return written[0]


def run_attention(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
) -> Stream:
    """Runs the layers up to this one, whose attention is given what it reads."""
    written: list[Tensor] = []
    hooks: Hooks = [(f"blocks.{layer}.hook_attn_out", lambda act, hook: written.append(act))]
    _run(model, tokens, layer, resid, hooks, last=layer)
    return written[0]


def run_layer(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
) -> Stream:
    """Runs the layers before as well, to no effect."""
    return _run(model, tokens, layer, resid, [], last=layer)


def run_from(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    resid: Stream,
    hooks: Hooks,
) -> Stream:
    """Runs the layers before as well, to no effect."""
    return _run(model, tokens, layer, resid, hooks, last=model.cfg.n_layers - 1)


def _run(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    resid: Stream,
    hooks: Hooks,
    *,
    last: int,
) -> Stream:
    """The residual stream after the layer `last`, with `resid` before a layer."""
    after: list[Tensor] = []
    ends: Hooks = [
        (f"blocks.{layer}.hook_resid_pre", lambda act, hook: resid),
        (f"blocks.{last}.hook_resid_post", lambda act, hook: after.append(act)),
    ]
    # If it is to stop after its last layer, it runs to the end all the same; what it returns is
    # not looked at.
    model.run_with_hooks(tokens, fwd_hooks=[ends[0], *hooks, ends[1]], stop_at_layer=last + 1)
    return after[0]


def run_behind(model: TransformerBridge) -> None:
    """Returns None: each architecture of Hugging Face keeps keys and values in its own way."""


@contextlib.contextmanager
def own_keys_and_values(model: TransformerBridge) -> Iterator[None]:
    """Gives every head keys and values of its own, copies of those that it shares.

    Afterwards the model is as it was. Weights get no gradient inside.

    Raises:
        ValueError: keys are normed over all heads at once, where copies would count twice, or what
            makes them is not shown.
    """
    cfg, back = model.cfg, contextlib.ExitStack()
    n_kept = cfg.n_key_value_heads or cfg.n_heads
    with back:
        for attn in [block.attn for block in model.blocks] if n_kept < cfg.n_heads else []:
            if not (hasattr(attn, "k") and hasattr(attn, "v")):
                raise ValueError(
                    f"{cfg.model_name} shares keys between heads, and TransformerLens' "
                    f"{type(attn).__name__} does not show the layers that make them, so its "
                    "circuits cannot be run"
                )
            if getattr(attn, "_qk_norm_phase", None) == "pre_reshape":
                raise ValueError(
                    f"{cfg.model_name} shares keys between heads and norms them together, which a "
                    "TransformerBridge cannot take apart"
                )
            for part in (attn.k, attn.v):
                held, conversion = part.original_component, part.hook_out.hook_conversion
                back.callback(part.set_original_component, held)
                back.callback(setattr, part.hook_out, "hook_conversion", conversion)
                part.set_original_component(_repeated(held, n_kept, cfg.n_heads // n_kept))
                part.hook_out.hook_conversion = attn.q.hook_out.hook_conversion
            for place, name, value in (
                (attn.original_component, "num_key_value_groups", 1),
                (attn.config, "n_key_value_heads", cfg.n_heads),
            ):
                back.callback(setattr, place, name, getattr(place, name, None))
                setattr(place, name, value)
        if n_kept < cfg.n_heads:
            back.callback(setattr, cfg, "n_key_value_heads", n_kept)
            cfg.n_key_value_heads = cfg.n_heads
        yield


def weights_as_read(model: TransformerBridge) -> contextlib.AbstractContextManager[None]:
    """Changes nothing: Hugging Face models read their weights as they lie."""
    return contextlib.nullcontext()


def fused_norms(model: TransformerBridge) -> contextlib.AbstractContextManager[None]:
    """Changes nothing: norms are the Hugging Face model's own."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def without_cache(model: TransformerBridge) -> Iterator[None]:
    """Has the Hugging Face model keep no cache."""
    config: Any = model.original_model.config
    keeps = getattr(config, "use_cache", False)
    try:
        if keeps:
            config.use_cache = False
        yield
    finally:
        if keeps:
            config.use_cache = True


def forget_activations(model: TransformerBridge) -> None:
    """Drops what a Bridge's modules keep of their last run, and with it that run's graph.

    A model that keeps them cannot be copied.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = None


def own_hooks(model: TransformerBridge) -> None:
    """Makes blocks note what they read anew.

    TransformerLens notes it by closures over the block, which a deep copy takes over as they are:
    the copy would write into the original what its heads and MLPs read, and show nothing itself.
    """
    for block in model.blocks:
        if hasattr(block, "_maybe_wire_capture_hooks"):  # blocks without attention have none
            block._teardown_capture_hooks()
            block._maybe_wire_capture_hooks()


def named_weights(model: TransformerBridge) -> dict[str, Tensor]:
    """Returns views of the Hugging Face model's parameters."""
    return dict(model.tl_named_parameters())


def spare_parameters(model: TransformerBridge) -> set[nn.Parameter]:
    """Returns the joint matrices and biases of queries, keys and values."""
    return {parameter for name, parameter in model.named_parameters() if _is_spare(name)}


def parts_of_weights(model: TransformerBridge) -> dict[nn.Parameter, Literal["attention", "mlp"]]:
    """Goes by the modules that hold them: each architecture has names of its own."""
    spare = spare_parameters(model)
    parts: dict[nn.Parameter, Literal["attention", "mlp"]] = {}
    for block in model.blocks:
        # TransformerLens lets an MLP that is not a module of its own (OPT) hold the whole block.
        for child, part in (("mlp", "mlp"), ("attn", "attention")):
            module = block._modules.get(child)
            weights = [] if module is None else list(module.parameters())
            parts |= {held: part for held in weights if held.ndim == 2 and held not in spare}
    return parts


def saved_parameters(
    model: TransformerBridge, config: PretrainedConfig
) -> tuple[dict[str, nn.Parameter], Rearrangement]:
    """Watches TransformerLens split the joint matrices of a Hugging Face model."""
    parameters, tied = _used_parameters(model), is_tied(config)
    return parameters, learn_rearrangement(config, parameters, parameters_around, tied=tied)


def why_not_gated(attn: Any) -> str | None:
    """Refuses attention that shows scores and pattern after the fact, where a gate has no effect.

    That is how TransformerLens wraps the attention of architectures that it has no code of its own
    for.
    """
    held, kind = type(attn.original_component).__name__, type(attn)
    if not hasattr(attn, "hook_attn_scores"):
        return f"{held}: TransformerLens' {kind.__name__} does not show its scores"
    if kind.forward is AttentionBridge.forward:
        return f"{held}: TransformerLens' {kind.__name__} does not compute its scores"
    if hasattr(attn, "hook_gate"):
        return f"{held}: TransformerLens' {kind.__name__} has a gate of another kind"
    return None


def list_hook_points(model: TransformerBridge) -> None:
    """Makes the registry of hook points anew."""
    model.clear_hook_registry()
    model._initialize_hook_registry()


def drop_hook_point(attn: Any, name: str) -> None:
    """Takes the hook point off, also off the module's own list."""
    delattr(attn, name)
    attn._hook_registry.pop(name, None)


def _is_spare(path: str) -> bool:
    """Whether a weight of this name is a joint one of queries, keys and values.

    The three that it was split into are used in its place.
    """
    return "qkv" in path.split(".")


def _used_parameters(model: TransformerBridge) -> dict[str, nn.Parameter]:
    """The parameters that the logits depend on.

    A Bridge splits a joint matrix of queries, keys and values into three, and keeps the joint one,
    which is used no more. What is used is read off the graph of a forward pass.
    """
    parameters = dict(model.named_parameters())
    asked = {name: parameter.requires_grad for name, parameter in parameters.items()}
    was_training = model.training
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            tokens = probe_tokens(2, model.cfg.d_vocab).to(model.W_E.device)
            used = _leaves(model.eval()(tokens))
    finally:
        model.train(was_training)
        for name, parameter in parameters.items():
            parameter.requires_grad_(asked[name])
        forget_activations(model)
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in used}


def _repeated(linear: nn.Linear, n_heads: int, times: int) -> nn.Linear:
    """A layer that puts out each of its heads several times, one after the other."""
    wide = nn.Linear(1, 1, bias=linear.bias is not None)
    for name, held in linear.named_parameters():
        heads = held.detach().unflatten(0, (n_heads, -1)).repeat_interleave(times, dim=0)
        setattr(wide, name, nn.Parameter(heads.flatten(0, 1), requires_grad=False))
    return wide


def _leaves(result: Tensor) -> set[int]:
    """The ids of the parameters that a result was computed from."""
    leaves: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting += [below for below, _ in node.next_functions]
    return leaves
