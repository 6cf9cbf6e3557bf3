"""What a method adds up over prompts, and the scores that it comes to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribute.gradients import Run, attention_edge_scores
from circuits.attribute.scores import Scores
from circuits.intervene.experiment import Experiment
from circuits.intervene.window import Part


class Totals:
    """Scores summed over the prompts that this process runs.

    Those of attention edges are summed for each template: only there do positions mean the same.

    Attributes:
        edges: Score of each edge, `[src dest]`.
    """

    def __init__(self, experiment: Experiment, *, attention_edges: bool) -> None:
        """Starts at zero everywhere."""
        self._experiment = experiment
        self._groups = experiment.prompts.groups() if attention_edges else {}
        embed, cfg = experiment.ablated.embed, experiment.model.cfg
        pos = experiment.prompts.clean.shape[1]
        self.edges = sums_like(embed, experiment.graph.mask.shape)
        self._attention = embed.new_zeros((len(self._groups), cfg.n_layers, cfg.n_heads, pos, pos))
        number = {template: index for index, template in enumerate(self._groups)}
        self._group_of = torch.tensor(
            [number[template] for template in experiment.prompts.templates if number],
            device=embed.device,
        )

    def add_attention_edges(
        self,
        run: Run,
        clean: Run,
        part: Part,
        weight: float = 1.0,
        layers: Iterable[int] | None = None,
    ) -> None:
        """Adds `weight` times the attention edges of one run over a part's prompts, if wanted."""
        if not self._groups:
            return
        for layer in range(self._experiment.graph.n_layers) if layers is None else layers:
            scores = attention_edge_scores(part, run, clean, layer)
            part.window.add_pairs(self._attention[:, layer], self._group_of, scores, weight)

    def scores(self, method: str) -> Scores:
        """Returns the means over the prompts of all processes.

        Raises:
            ValueError: a score is not finite.
        """
        edges, attention = self.edges.clone(), self._attention.clone()
        self._experiment.workers.add_up([edges, attention] if self._groups else [edges])
        n_prompts = len(self._experiment.prompts)
        lengths = self._experiment.prompts.lengths
        return Scores(
            graph=self._experiment.graph,
            edges=edges.cpu() / n_prompts,
            attention_edges={
                template: of_length(total, int(lengths[rows[0]])).cpu() / len(rows)
                for (template, rows), total in zip(self._groups.items(), attention, strict=True)
            },
            method=method,
            ablation=self._experiment.ablation,
            n_prompts=n_prompts,
        ).check_finite()


def of_length(
    total: Float[Tensor, "layer head query_pos key_pos"], length: int
) -> Float[Tensor, "layer head length length"]:
    """Returns the scores of the first `length` positions: those that prompts so long have."""
    return total[..., :length, :length]


def sums_like(act: Tensor, shape: torch.Size) -> Tensor:
    """Returns zeros on the device of `act`, in float32 at least: they add up many prompts."""
    dtype = torch.promote_types(act.dtype, torch.float32)
    return torch.zeros(shape, device=act.device, dtype=dtype)
