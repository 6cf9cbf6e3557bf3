"""The terms A_ij P_ij v_j that every attention edge adds to what its head attends to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class AttentionTerms:
    """The terms A_ij P_ij v_j of every attention edge, as pattern times value.

    Attributes:
        pattern: Attention after the gate, A_ij P_ij.
        value: Value vectors, one for each query head.
        key: Keys before they are rotated, one for each query head, where a run of the model can
            begin behind positions whose keys are known.
    """

    pattern: Float[Tensor, "layer batch head query_pos key_pos"]
    value: Float[Tensor, "layer batch key_pos head d_head"]
    key: Float[Tensor, "layer batch key_pos head d_head"] | None = field(default=None, kw_only=True)

    def add_up(
        self, layer: int, weight: Float[Tensor, "batch head query_pos key_pos"], rows: slice
    ) -> Float[Tensor, "batch query_pos head d_head"]:
        """Returns the weighted sum over keys of a layer's terms, for some prompts."""
        weighted = weight * self.pattern[layer, rows]
        return torch.einsum("bhqk,bkhe->bqhe", weighted, self.value[layer, rows])

    def dot(
        self, layer: int, direction: Float[Tensor, "batch query_pos head d_head"], rows: slice
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Returns each term's dot product with the `direction` of its query and head."""
        value = self.value[layer, rows]
        return self.pattern[layer, rows] * torch.einsum("bqhe,bkhe->bhqk", direction, value)

    def terms(
        self, layer: int, head: int, query: int, keys: slice, rows: slice
    ) -> Float[Tensor, "batch key_pos d_head"]:
        """Returns the terms of one head and query position, for some prompts."""
        value = self.value[layer, rows, keys, head]
        return self.pattern[layer, rows, head, query, keys, None] * value


@dataclass(frozen=True)
class MeanTerms(AttentionTerms):
    """The terms of every attention edge, each the mean over the prompts of the same template.

    The mean of a product is not the product of the means, so a mean term is a vector for each query
    and key. They are never held for more than one template and layer at a time, but made of the
    clean runs (`pattern`, `value`) where they are asked for.

    Attributes:
        templates: The prompts of each template.
    """

    templates: tuple[Int[Tensor, " _"], ...]  # of as many prompts as each template has

    def add_up(
        self, layer: int, weight: Float[Tensor, "batch head query_pos key_pos"], rows: slice
    ) -> Float[Tensor, "batch query_pos head d_head"]:
        """Returns the weighted sum over keys of a layer's terms, for some prompts."""
        batch, n_heads, pos, _ = weight.shape
        found = weight.new_empty(batch, pos, n_heads, self.value.shape[-1])
        for inside, members in self._present(rows):
            means = self._means(layer, members)
            found[inside] = torch.einsum("bhqk,qkhe->bqhe", weight[inside], means)
        return found

    def dot(
        self, layer: int, direction: Float[Tensor, "batch query_pos head d_head"], rows: slice
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Returns each term's dot product with the `direction` of its query and head."""
        batch, pos, n_heads, _ = direction.shape
        found = direction.new_empty(batch, n_heads, pos, pos)
        for inside, members in self._present(rows):
            means = self._means(layer, members)
            found[inside] = torch.einsum("bqhe,qkhe->bhqk", direction[inside], means)
        return found

    def terms(
        self, layer: int, head: int, query: int, keys: slice, rows: slice
    ) -> Float[Tensor, "batch key_pos d_head"]:
        """Returns the terms of one head and query position, for some prompts."""
        every = super().terms(layer, head, query, keys, slice(None))
        found = every.new_empty(every[rows].shape)
        for inside, members in self._present(rows):
            found[inside] = every[members].mean(dim=0)
        return found

    def _means(
        self, layer: int, members: Int[Tensor, " member"]
    ) -> Float[Tensor, "query_pos key_pos head d_head"]:
        pattern, value = self.pattern[layer, members], self.value[layer, members]
        return torch.einsum("bhqk,bkhe->qkhe", pattern, value) / len(members)

    def _present(
        self, rows: slice
    ) -> Iterator[tuple[Int[Tensor, " some"], Int[Tensor, " member"]]]:
        """Yields which of `rows` are of a template, counted from the first, and its prompts."""
        first, end, _ = rows.indices(self.pattern.shape[1])
        for members in self.templates:
            inside = members[(members >= first) & (members < end)] - first
            if len(inside):
                yield inside, members
