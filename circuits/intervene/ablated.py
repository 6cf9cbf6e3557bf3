"""What stands in for components outside a circuit.

`ablated_activations` gives what `circuits.intervene.activations.record_activations` gives of a run,
for the three kinds of ablation: the corrupted run, the mean over the clean prompts of the same
template per position, or zero.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from circuits.choices import ABLATIONS, Ablation, check_choice
from circuits.graph import Graph
from circuits.intervene.activations import Activations, record_activations, row_batches
from circuits.intervene.attention_terms import AttentionTerms, MeanTerms
from circuits.intervene.behind_heads import attention_out, norm_of
from circuits.models.backend import Model
from circuits.prompts import Prompts, TooFewPrompts


def ablated_activations(
    model: Model, graph: Graph, prompts: Prompts, ablation: Ablation | str
) -> Activations:
    """Returns what components outside a circuit write, for every prompt.

    Raises:
        TooFewPrompts: a mean over templates that have one prompt only.
        ValueError: an unknown ablation.
    """
    check_choice("ablation", ablation, ABLATIONS)
    tokens = prompts.corrupted if ablation == "corrupted" else prompts.clean
    found = _joined(
        [
            record_activations(model, graph, tokens[rows], keys=ablation == "corrupted")
            for rows in row_batches(graph, prompts, model.cfg.d_model)
        ]
    )
    if ablation == "corrupted":
        return found
    if ablation == "mean":
        return _averaged(model, graph, found, prompts)
    return _zeroed(model, graph, found)


def _joined(parts: list[Activations]) -> Activations:
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1)

    keys = [part.attention.key for part in parts if part.attention.key is not None]

    return Activations(
        embed=torch.cat([part.embed for part in parts]),
        z=join("z"),
        mlp_out=join("mlp_out"),
        resid_pre=join("resid_pre"),
        resid_mid=join("resid_mid"),
        resid_final=torch.cat([part.resid_final for part in parts]),
        attention=AttentionTerms(
            pattern=torch.cat([part.attention.pattern for part in parts], dim=1),
            value=torch.cat([part.attention.value for part in parts], dim=1),
            key=torch.cat(keys, dim=1) if keys else None,
        ),
    )


def _averaged(model: Model, graph: Graph, clean: Activations, prompts: Prompts) -> Activations:
    """What sources write replaced by the mean over each template, per position.

    What destinations read is the mean, too, where the stream is the sum of what sources write. A
    norm behind heads makes of their mean another thing than the mean of what it makes of them.
    """
    groups = prompts.groups()
    alone = [template for template, rows in groups.items() if len(rows) < 2]
    if alone:
        raise TooFewPrompts(
            f"mean ablation needs at least 2 prompts of each template, {alone[0]!r} has one; "
            "ask for more prompts, give aligned prompts the same template, or choose the "
            "ablation 'corrupted'"
        )

    members = tuple(torch.tensor(rows, device=clean.embed.device) for rows in groups.values())

    def mean(acts: Tensor, dim: int) -> Tensor:
        result = torch.empty_like(acts)
        for index in members:
            average = acts.index_select(dim, index).mean(dim=dim, keepdim=True)
            result.index_copy_(dim, index, average.expand_as(acts.index_select(dim, index)))
        return result

    z = mean(clean.z, 1)
    resid_pre, resid_mid = mean(clean.resid_pre, 1), mean(clean.resid_mid, 1)
    resid_final = mean(clean.resid_final, 0)
    for layer in range(graph.n_layers) if norm_of(model, 0) is not None else ():
        added = mean(attention_out(model, layer, clean.z[layer]), 0)
        correction = attention_out(model, layer, z[layer]) - added
        resid_pre[layer + 1 :] += correction
        resid_mid[layer:] += correction
        resid_final += correction
    return Activations(
        embed=mean(clean.embed, 0),
        z=z,
        mlp_out=mean(clean.mlp_out, 1),
        resid_pre=resid_pre,
        resid_mid=resid_mid,
        resid_final=resid_final,
        attention=MeanTerms(clean.attention.pattern, clean.attention.value, members),
    )


def _zeroed(model: Model, graph: Graph, clean: Activations) -> Activations:
    """No source writes; destinations read what is left: the constants of the residual stream."""
    written = clean.embed.clone()
    resid_pre, resid_mid = [], []
    for layer in range(graph.n_layers):
        resid_pre.append(clean.resid_pre[layer] - written)
        heads = attention_out(model, layer, clean.z[layer])
        written += heads - attention_out(model, layer, torch.zeros_like(clean.z[layer]))
        resid_mid.append(clean.resid_mid[layer] - written)
        written += clean.mlp_out[layer]
    return Activations(
        embed=torch.zeros_like(clean.embed),
        z=torch.zeros_like(clean.z),
        mlp_out=torch.zeros_like(clean.mlp_out),
        resid_pre=torch.stack(resid_pre),
        resid_mid=torch.stack(resid_mid),
        resid_final=clean.resid_final - written,
        attention=replace(clean.attention, pattern=torch.zeros_like(clean.attention.pattern)),
    )
