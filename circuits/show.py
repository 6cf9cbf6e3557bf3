"""What a notebook asks for in one call: where a head looks on a prompt of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribute.score_split import check_head
from circuits.figures.patterns import head_figure
from circuits.models.load import as_model, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from circuits.models.backend import Model

    AnyModel = Model | PreTrainedModel | str | Path


def show_attention(
    models: AnyModel | Mapping[str, AnyModel], prompt: str, layer: int, head: int
) -> go.Figure:
    """Returns a figure of where a head attends on a prompt, after the gate, in each model.

        show_attention({"dense": "dense", "sparse": "sparse"}, "Mary and John ...", 5, 2)

    Args:
        models: A model, as `circuits.models.load.as_model` takes it, or several by name.
        prompt: The text; the begin-of-sequence token is put in front.
        layer: The layer, from 0.
        head: The head, from 0.

    Raises:
        ValueError: a model has no such layer or head, or no tokenizer.
    """
    several = models if isinstance(models, Mapping) else {"": models}
    found = {}
    for name, given in several.items():
        model = as_model(given)
        label = name or (str(given) if isinstance(given, str | Path) else model.cfg.model_name)
        found[label] = _attention(model, prompt, layer, head)
    return head_figure(found, title=f"a{layer}.h{head}: attention after the gate")


@torch.no_grad()
def _attention(
    model: Model, prompt: str, layer: int, head: int
) -> tuple[list[str], Float[Tensor, "query key"]]:
    """The prompt's tokens as text, and the head's pattern on them."""
    check_head(model, layer, head)
    tokenizer = tokenizer_of(model)
    tokens = model.to_tokens(prompt)
    place = f"blocks.{layer}.attn.hook_pattern"
    _, cache = model.run_with_cache(tokens, names_filter=place)
    labels = [str(tokenizer.decode([token])) for token in tokens[0].tolist()]
    return labels, cache[place][0, head].float().cpu()
