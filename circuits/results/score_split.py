"""An attention score as a sum over pairs of what wrote the query and what wrote the key.

With the scales of all norms held at what they were in the run, a head's query is a sum of what each
source upstream gave it, and so is its key. Their product, the score, is then the sum over all pairs
of a source at the query's position and one at the key's (Elhage et al. 2021, A Mathematical
Framework for Transformer Circuits; norms held as in logit attribution). `circuits.split_score`
makes such a split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from pandas import DataFrame
from torch import Tensor

from circuits.results.notebook import table_html

Pair = tuple[str, str]
"""The names of a source at the query's position and of one at the key's."""


@dataclass(frozen=True, eq=False, repr=False)
class ScoreSplit:
    """What put one attention score where it is.

    Attributes:
        model: The model's name.
        tokens: The prompt, token by token, as text.
        layer: The layer of the head.
        head: The head, from 0.
        query: The position that looks.
        key: The position that is looked at.
        sources: What wrote to the stream before the layer: `embed`, `pos_embed` where positions are
            added there, earlier heads and MLPs, and `bias` for all that no source changes (the
            biases of earlier heads, of norms and of the head's own queries and keys).
        pairs: What each pair adds to the score.
        by_position: What the distance of the two adds past queries and keys (ALiBi); else 0.
        score: The score in the run: the sum of these.
        gate_bias: What a gated model adds to the score to decide whether the edge is open; None in
            a dense one.
        pattern: Attention from `query` to `key` in the run, after the gate.
    """

    model: str
    tokens: tuple[str, ...]
    layer: int
    head: int
    query: int
    key: int
    sources: tuple[str, ...]
    pairs: Float[Tensor, "src src"]
    by_position: float
    score: float
    gate_bias: float | None
    pattern: float

    @property
    def name(self) -> str:
        """The head's name in the graph."""
        return f"a{self.layer}.h{self.head}"

    @property
    def over_threshold(self) -> float | None:
        """How far the edge is over its gate's threshold; None in a dense model, which has none."""
        return None if self.gate_bias is None else self.score + self.gate_bias

    def strongest(self, n: int) -> list[Pair]:
        """Returns the `n` pairs that raise the score most, the first one most."""
        return [self._pair(flat) for flat in self._order[:n].tolist()]

    def value(self, pairs: Iterable[Pair]) -> float:
        """Returns what some pairs add to the score together; each counts once.

        Raises:
            ValueError: a name is no source of the split.
        """
        return float(self.pairs.double()[self.mask(pairs)].sum())

    def mask(self, pairs: Iterable[Pair]) -> Bool[Tensor, "src src"]:
        """Returns which entries of `pairs` some pairs are.

        Raises:
            ValueError: a name is no source of the split.
        """
        chosen = torch.zeros(self.pairs.shape, dtype=torch.bool)
        place = {name: row for row, name in enumerate(self.sources)}
        for pair in pairs:
            for name in pair:
                if name not in place:
                    raise ValueError(
                        f"{name!r} is no source of {self.name}; sources are "
                        f"{', '.join(self.sources[:3])} ... {self.sources[-1]}"
                    )
            chosen[place[pair[0]], place[pair[1]]] = True
        return chosen

    @property
    def n_to_shut(self) -> int | None:
        """The fewest pairs without which the edge is shut, the strongest; 0 if it is shut.

        None where there is no gate, or where the score stays over the threshold without any pair
        that raises it.
        """
        over = self.over_threshold
        if over is None or over <= 0:
            return None if over is None else 0
        falls = self.pairs.double().flatten()[self._order].cumsum(dim=0)
        shut = (falls >= over).nonzero()
        return int(shut[0]) + 1 if len(shut) else None

    def shut_at_random(self, n: int, *, n_draws: int = 1000, seed: int = 0) -> float:
        """Returns how often the edge is shut without `n` random pairs other than the strongest.

        They are drawn from all but the `n` strongest, as a baseline for these.

        Raises:
            ValueError: the model has no gate, or there are not so many other pairs.
        """
        over = self.over_threshold
        if over is None:
            raise ValueError(f"{self.model} has no gate that could be shut")
        others = self.pairs.double().flatten()[self._order[n:]]
        if not 0 < n <= len(others):
            raise ValueError(
                f"{n} pairs cannot be drawn of the {len(others)} that are not the strongest"
            )
        generator = torch.Generator().manual_seed(seed)
        draws = [
            others[torch.randperm(len(others), generator=generator)[:n]].sum()
            for _ in range(n_draws)
        ]
        return float((torch.stack(draws) >= over).double().mean())

    def to_dataframe(self) -> DataFrame:
        """Returns one row for each pair, with the columns `query_source`, `key_source`, `score`.

        The greatest absolute value stands first; `by_position` is not among them.
        """
        flat = self.pairs.double().flatten()
        order = flat.abs().argsort(descending=True, stable=True).tolist()
        rows = [(*self._pair(place), float(flat[place])) for place in order]
        return DataFrame(rows, columns=["query_source", "key_source", "score"])

    def __str__(self) -> str:
        looks, at = self.tokens[self.query], self.tokens[self.key]
        return f"{self.name} from {self.query} {looks!r} to {self.key} {at!r}"

    def __repr__(self) -> str:
        return f"ScoreSplit({self.model} {self}: {self.score:.4g} of {self.pairs.numel()} pairs)"

    def _repr_html_(self) -> str:
        return table_html(f"{self.model} {self}: score {self.score:.4g}", self.to_dataframe())

    @cached_property
    def _order(self) -> Int[Tensor, " pair"]:
        """Flat places of all pairs, what raises the score most first."""
        return self.pairs.flatten().argsort(descending=True, stable=True)

    def _pair(self, flat: int) -> Pair:
        row, column = divmod(flat, len(self.sources))
        return self.sources[row], self.sources[column]
