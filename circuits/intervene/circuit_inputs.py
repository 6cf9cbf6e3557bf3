"""What destinations read in a circuit beyond what they read with everything ablated.

That is the sum of the changes of their sources in the circuit, each what a source writes in this
run minus what it writes ablated. The changes of all sources fill hundreds of megabytes, and to go
through them takes longer than to multiply: sources and destinations without edges are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.intervene.activations import noting_changes
from circuits.intervene.behind_heads import ablated_totals, norm_of, read_inputs
from circuits.intervene.window import Part
from circuits.models.backend import Hooks

Changes = Callable[[int, int, slice], Float[Tensor, "dest batch pos d_model"]]
"""The first of some sources, their end, and the columns of destinations -> what these read."""


@dataclass(frozen=True)
class Reader:
    """What the destinations of a circuit read, as its run goes on.

    Attributes:
        noting: The hooks that note what sources write.
        changes: What destinations read of some sources, in a tensor of its own.
    """

    noting: Hooks
    changes: Changes


def reader(part: Part, edges: Bool[Tensor, "src dest"]) -> Reader:
    """Returns the reader of one run of the circuit of `edges`, on a part of the prompts."""
    if norm_of(part.experiment.model, 0) is not None:
        return _reader_behind_norms(part, edges)
    experiment = part.experiment
    live = edges.any(dim=1)
    n_live = [0, *live.cumsum(dim=0).tolist()]  # before each source
    change, noting = noting_changes(
        experiment.model, experiment.graph, experiment.ablated, part.rows, live
    )
    weight = edges[live].to(device=change.device, dtype=change.dtype)

    def changes(first: int, end: int, columns: slice) -> Float[Tensor, "dest batch pos d_model"]:
        some = slice(n_live[first], n_live[end])
        wanted = weight[some, columns]
        reading = wanted.any(dim=0)
        if reading.all():
            return (wanted.T @ change[some].flatten(1)).view(-1, *change.shape[1:])
        found = change.new_zeros(wanted.shape[1], *change.shape[1:])
        if reading.any():
            kept = wanted[:, reading].T @ change[some].flatten(1)
            found[reading] = kept.view(-1, *change.shape[1:])
        return found

    return Reader(noting, changes)


def _reader_behind_norms(part: Part, edges: Bool[Tensor, "src dest"]) -> Reader:
    """The reader where norms stand behind heads: destinations read a layer's heads together."""
    experiment = part.experiment
    model, graph, ablated = experiment.model, experiment.graph, experiment.ablated
    change, noting = noting_changes(model, graph, ablated, part.rows)
    weight = edges.to(device=change.device, dtype=change.dtype)
    without = ablated_totals(model, ablated.z[:, part.rows])
    nothing = torch.zeros_like(ablated.embed[part.rows])

    def changes(first: int, end: int, columns: slice) -> Float[Tensor, "dest batch pos d_model"]:
        wanted = weight[:end, columns].clone()
        wanted[:first] = 0
        return read_inputs(model, graph, wanted, change[:end], nothing, without)

    return Reader(noting, changes)
