"""One set of functions for both of TransformerLens' classes of model.

A HookedTransformer is a model of its own; a TransformerBridge wraps the Hugging Face model. Both
have the same hook names, so most code never asks which of the two it holds. What differs stands
behind a `Backend`: the modules circuits/models/hooked.py and circuits/models/bridge.py, function by
function. `backend_of(model)` is the one place that tells the classes apart.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.models.anatomy import has_mlps

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig

    from circuits.models.hf_weights import Rearrangement

    Model: TypeAlias = HookedTransformer | TransformerBridge
else:
    Model = nn.Module  # what both are: only one of them may exist, and both take long to import

Hooks: TypeAlias = list[tuple[Any, Any]]
"""Names of hook points, each with the function `(act, hook) -> act or None` to run there."""

Stream: TypeAlias = Float[Tensor, "batch pos d_model"]

PastHeads: TypeAlias = Float[Tensor, "layer batch before head d_head"]
RunBehind: TypeAlias = Callable[
    [Int[Tensor, "batch pos"], Int[Tensor, "batch window"], PastHeads, PastHeads, Hooks],
    tuple[Float[Tensor, "batch window d_model"], list[Tensor]],
]
"""Tokens of all positions, which positions are run, keys (before they are rotated) and values of
those just before, and hooks -> the final residual stream of the positions that are run, and each
layer's keys of the others and of these. Positions before a prompt's first are not attended to.
"""

HAS_HOOKED_TRANSFORMER = int(importlib.metadata.version("transformer_lens").partition(".")[0]) < 4
"""Whether the installed TransformerLens has a HookedTransformer."""


@runtime_checkable
class Backend(Protocol):
    """What is done differently with each class of model; each function takes one of its own class.

    The tokens that a part of a model is run for are those of its prompts: a HookedTransformer does
    not look at them, a TransformerBridge computes its positions and masks from them.
    """

    # ---- running a part

    def run_heads(
        self,
        model: Any,
        tokens: Int[Tensor, "batch pos"],
        layer: int,
        resid: Stream,
        *,
        read: str,
        changed: Stream,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Returns a layer's z where its heads read `resid`, but as `read` (q, k or v) `changed`."""
        ...

    def run_mlp(
        self, model: Any, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
    ) -> Stream:
        """Returns what a layer's MLP writes where it reads `resid`."""
        ...

    def run_attention(
        self, model: Any, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
    ) -> Stream:
        """Returns what a layer's attention writes where it reads `resid`."""
        ...

    def run_layer(
        self, model: Any, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
    ) -> Stream:
        """Returns the residual stream after a layer that has `resid` before it."""
        ...

    def run_from(
        self, model: Any, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream, hooks: Hooks
    ) -> Stream:
        """Returns the final residual stream of a run with `resid` before a layer."""
        ...

    def run_behind(self, model: Any) -> RunBehind | None:
        """Returns what runs positions behind others whose keys and values are given.

        None where the model cannot.
        """
        ...

    def own_keys_and_values(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Gives every head keys and values of its own, copies of those that it shares.

        Afterwards the model is as it was. Weights may get no gradient inside.
        """
        ...

    def weights_as_read(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Lays weights out in memory as a run reads them, so that no run copies them first.

        Afterwards they lie as before. Their values and shapes are the same throughout.
        """
        ...

    def fused_norms(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Has the norms before heads computed in one pass, where a norm for each head is costly.

        Their own hook points are passed over, so a norm that has a hook stays as it is.
        """
        ...

    def without_cache(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Keeps no keys and values for generation inside the context.

        Blocks that are computed again for the backward pass would add to those that are kept.
        """
        ...

    def forget_activations(self, model: Any) -> None:
        """Drops what modules keep of their last run, and with it that run's graph."""
        ...

    def own_hooks(self, model: Any) -> None:
        """Ties what a deep copy shares with its original, and is not a tensor, to the copy."""
        ...

    # ---- weights

    def named_weights(self, model: Any) -> dict[str, Tensor]:
        """Returns the weights under HookedTransformer's names, to look at or to write into."""
        ...

    def spare_parameters(self, model: Any) -> set[nn.Parameter]:
        """Returns the parameters that others were split from and are used in place of."""
        ...

    def parts_of_weights(self, model: Any) -> dict[nn.Parameter, Literal["attention", "mlp"]]:
        """Returns the weight matrices of all blocks, each with the part that it belongs to.

        Matrices that others were split from are left out.
        """
        ...

    def saved_parameters(
        self, model: Any, config: PretrainedConfig
    ) -> tuple[dict[str, nn.Parameter], Rearrangement]:
        """Returns the parameters that are used, and where they lie in `config`'s model.

        Raises:
            ValueError: there is no way back to a Hugging Face model.
        """
        ...

    # ---- attention and its hook points

    def why_not_gated(self, attn: Any) -> str | None:
        """Returns what an attention module is that no gate can be put on, and why.

        None where one can.
        """
        ...

    def list_hook_points(self, model: Any) -> None:
        """Names the hook points that were put into the model, and lists them in `hook_dict`."""
        ...

    def drop_hook_point(self, attn: Any, name: str) -> None:
        """Takes a hook point off an attention module."""
        ...


def backend_of(model: nn.Module) -> Backend:
    """Returns the functions for a model's class.

    Raises:
        ValueError: it is neither a HookedTransformer nor a TransformerBridge.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        import circuits.models.bridge as bridge

        return bridge
    if HAS_HOOKED_TRANSFORMER:
        from transformer_lens import HookedTransformer

        if isinstance(model, HookedTransformer):
            import circuits.models.hooked as hooked

            return hooked
    raise ValueError(
        f"a {type(model).__name__} is neither a HookedTransformer nor a TransformerBridge; make "
        "one with load_model (of a name or folder) or from_hf (of a Hugging Face model)"
    )


def attention_layers(model: nn.Module) -> list[Any]:
    """Returns the attention modules, layer 0 first.

    Raises:
        ValueError: it is not a hooked model, or some of its blocks have no attention.
    """
    backend_of(model)  # refuses what is not a hooked model
    blocks = list(cast(Any, model).blocks)
    without = [number for number, block in enumerate(blocks) if not hasattr(block, "attn")]
    if without:
        raise ValueError(
            f"blocks {without} of the model have no attention with scores (a recurrent or "
            "convolutional layer?); only models with attention in every block are supported"
        )
    return [block.attn for block in blocks]


@contextlib.contextmanager
def component_hooks(model: Model, *, split_heads: bool = True) -> Iterator[None]:
    """Gives every head its own q, k and v and every MLP its `hook_mlp_in`.

    Grouped keys and values are handed out to the heads that share them. With `split_heads` every
    head also has its own `hook_q_input`, `hook_k_input` and `hook_v_input`, which costs a copy of
    the residual stream and a layer norm for each. The flags return to what they were, also after
    an exception.

    Raises:
        ValueError: a TransformerBridge whose shared keys cannot be handed out, or whose attention
            has no inputs for single heads.
    """
    flags: dict[str, Callable[[bool], None]] = {}
    if split_heads:
        flags["use_split_qkv_input"] = model.set_use_split_qkv_input
    if has_mlps(model.cfg):
        flags["use_hook_mlp_in"] = model.set_use_hook_mlp_in
    before = {name: getattr(model.cfg, name) for name in flags}
    backend = backend_of(model)
    norms = backend.fused_norms(model) if split_heads else contextlib.nullcontext()
    with backend.own_keys_and_values(model), norms:
        try:
            for switch in flags.values():
                _switch_on(model, switch)
            yield
        finally:
            for name, switch in flags.items():
                switch(before[name])


def _switch_on(model: Model, switch: Callable[[bool], None]) -> None:
    try:
        switch(True)
    except NotImplementedError as error:
        raise ValueError(
            f"TransformerLens shows no inputs of single heads in {model.cfg.model_name}, so its "
            f"circuits cannot be run ({error})"
        ) from error
