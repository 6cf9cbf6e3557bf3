"""An experiment: a model, prompts, a metric and an ablation, and the runs that every one needs.

The gates of a sparse model follow the run that they are in, or are held at their values in the
whole model's run on the clean prompt (`gates="clean"`), both in every run of a circuit and in
attribution. What stands in for an ablated component is the same for both: a corrupted run has
gates of its own. The whole model and the ablated model are the same too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.choices import GATES, Ablation, Gates, check_choice
from circuits.gate.gate import hold_gates, is_gated
from circuits.graph import Graph
from circuits.intervene.ablated import ablated_activations
from circuits.intervene.activations import (
    Activations,
    logits_after,
    record_gates,
    row_batches,
    run_to_final,
)
from circuits.intervene.attention_terms import MeanTerms
from circuits.intervene.check_model import check_model
from circuits.intervene.window import Part, Window, cut_parts, some_prompts, whole_part
from circuits.metrics import METRICS
from circuits.models.anatomy import has_mlps, is_parallel, why_not_a_sum
from circuits.models.backend import Hooks, Model, component_hooks
from circuits.prompts import Prompts
from circuits.workers import ALONE, Workers


@dataclass(frozen=True)
class Experiment:
    """A model, prompts, a metric and an ablation, with what every intervention needs.

    What takes a forward pass of its own (`clean_logits`, and so `full`) is made when first asked
    for: attribution needs none of it.

    Attributes:
        model: The model under study, in evaluation mode.
        graph: Its graph.
        prompts: The prompts, on the model's device.
        metric: A name in `circuits.metrics.METRICS`.
        ablation: What components outside a circuit write.
        ablated: The activations that stand in for ablated components, of all prompts in every
            process.
        workers: The processes that share the prompts.
        gates: What the gates of a sparse model do while a circuit runs.
        window: The prompts and positions of another experiment that this one is cut to, if it is.
    """

    model: Model
    graph: Graph
    prompts: Prompts
    metric: str
    ablation: Ablation | str
    ablated: Activations
    workers: Workers = ALONE
    gates: Gates | str = "follow"
    window: Window | None = None

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of each prompt."""
        return self.prompts.templates

    def subset(self, indices: Sequence[int]) -> Experiment:
        """Returns the experiment on the prompts at `indices`.

        What was run is not run again, but for means: these are of other prompts.
        """
        prompts = self.prompts.subset(indices)
        if isinstance(self.ablated.attention, MeanTerms):
            return prepare_experiment(
                self.model,
                prompts,
                metric=self.metric,
                ablation=self.ablation,
                gates=self.gates,
                workers=self.workers,
                is_checked=True,
            )
        rows = torch.tensor(list(indices), device=prompts.clean.device)
        found = replace(self, prompts=prompts, ablated=some_prompts(self.ablated, rows))
        for name, dim in (("clean_logits", 0), ("full", 0), ("empty", 0), ("clean_gates", 1)):
            if name in vars(self):  # where a cached_property keeps what it has
                vars(found)[name] = vars(self)[name].index_select(dim, rows)
        return found

    @cached_property
    def own_parts(self) -> list[Part]:
        """The parts of the prompts that this process runs, cut to the positions that count."""
        if isinstance(self.ablated.attention, MeanTerms):  # which are of whole templates
            return [whole_part(self, rows) for rows in self.own_batches()]
        return cut_parts(self)

    def own_batches(self) -> list[slice]:
        """Returns the batches of whole prompts that this process runs."""
        batches = row_batches(self.graph, self.prompts, self.model.cfg.d_model, self.workers.count)
        return [rows for _, rows in self.workers.own(batches)]

    @cached_property
    def clean_gates(self) -> Bool[Tensor, "layer batch head query_pos key_pos"]:
        """Which gates of a sparse model are open in the whole model's run."""
        if self.window is not None and self.window.gates is not None:
            return self.window.gates
        return record_gates(self.model, self.graph, self.prompts)

    @property
    def holds_gates(self) -> bool:
        """Whether there are gates, and they are held."""
        return self.gates != "follow" and is_gated(self.model)

    def hold_gates(self, rows: slice) -> AbstractContextManager[None]:
        """Returns a context for runs of some prompts, in which gates that are to be held are."""
        if not self.holds_gates:
            return nullcontext()
        return hold_gates(self.model, self.clean_gates[:, rows])

    def run(self, rows: slice, hooks: Hooks) -> Float[Tensor, "some pos d_model"]:
        """Returns the final residual stream in a run of some clean prompts, or of their window."""
        if self.window is not None:
            return self.window.run(self.model, hooks)
        return run_to_final(self.model, self.prompts.clean[rows], hooks)

    def logits(self, hooks_of: Callable[[Part], Hooks]) -> Float[Tensor, "batch d_vocab"]:
        """Returns the logits at the answer position of all prompts, run in parts with hooks."""
        found = self.model.W_U.new_zeros(len(self.prompts), self.model.W_U.shape[-1])
        for part in self.own_parts:
            here, rows = part.experiment, part.rows
            with here.hold_gates(rows):
                resid = here.run(rows, hooks_of(part))
            last = here.prompts.last[rows]
            found[part.window.index] = logits_after(self.model, resid, last)
        self.workers.add_up([found])
        return found

    @cached_property
    def clean_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """The whole model's logits at the answer position."""
        with component_hooks(self.model, split_heads=False), torch.no_grad():
            return self.logits(lambda _part: [])

    @cached_property
    def full(self) -> Float[Tensor, " batch"]:
        """The metric of the whole model, per prompt.

        Raises:
            ValueError: the metric is not one finite number for each prompt.
        """
        return self.checked(self.score(self.clean_logits), "whole")

    @cached_property
    def empty(self) -> Float[Tensor, " batch"]:
        """The metric with everything ablated, per prompt.

        Raises:
            ValueError: the metric is not one finite number for each prompt.
        """
        with torch.no_grad():
            logits = logits_after(self.model, self.ablated.resid_final, self.prompts.last)
        return self.checked(self.score(logits), "ablated")

    def score(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """Returns the metric of each prompt."""
        return METRICS[self.metric](logits, self.prompts, self.clean_logits)

    def checked(self, values: Tensor, which: str) -> Float[Tensor, " batch"]:
        """Returns the metric of each prompt; `which` is what an error calls the model.

        Raises:
            ValueError: it is not one finite number for each prompt.
        """
        if values.shape != (len(self.prompts),):
            raise ValueError(
                f"the metric {self.metric!r} returned shape {tuple(values.shape)} for "
                f"{len(self.prompts)} prompts; it must return one number for each"
            )
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).nonzero()[0])
            raise ValueError(
                f"{self.metric} of the {which} model is {values[bad].item()} on prompt "
                f"{bad + 1}; look for NaN or infinity in the model's weights"
            )
        return values


def faithfulness(
    values: Float[Tensor, "*sizes batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
) -> Float[Tensor, "*sizes"]:
    """Returns (m(C) - m(empty)) / (m(full) - m(empty)), each m the mean over prompts."""
    return (values.mean(dim=-1) - empty.mean()) / (full.mean() - empty.mean())


def graph_of(model: Model) -> Graph:
    """Returns the model's graph.

    Raises:
        ValueError: the residual stream is not the sum of the components' outputs, as in models
            that scale what they write (Granite).
    """
    cfg = model.cfg
    if (reason := why_not_a_sum(cfg)) is not None:
        raise ValueError(
            f"{cfg.model_name} {reason}; edges are not defined for such a model, use one whose "
            "residual stream is the sum of what they write"
        )
    return Graph(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        has_mlps=has_mlps(cfg),
        parallel_attn_mlp=is_parallel(cfg),
        d_model=cfg.d_model,
    )


def prepare_experiment(
    model: Model,
    prompts: Prompts,
    *,
    metric: str,
    ablation: Ablation | str = "corrupted",
    gates: Gates | str = "follow",
    workers: Workers = ALONE,
    is_checked: bool = False,
) -> Experiment:
    """Returns an experiment with the clean and the ablated run, made once.

    Args:
        model: The model under study; put into evaluation mode.
        prompts: The prompts.
        metric: A name in `circuits.metrics.METRICS`.
        ablation: What components outside a circuit write.
        gates: What the gates of a sparse model do while a circuit runs; a dense model has none.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`.
        is_checked: Whether `check_model` has passed the model already, which takes two runs.

    Raises:
        ValueError: an unknown name, prompts longer than the model's context, or a model whose edges
            are not defined or cannot be measured (see `check_model`).
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    check_choice("gates", gates, GATES)
    if prompts.clean.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"the longest prompt has {prompts.clean.shape[1]} tokens, the model reads "
            f"{model.cfg.n_ctx}; shorten the prompts"
        )
    graph = graph_of(model)
    prompts = prompts.to(model.W_E.device)
    model.eval()
    if not is_checked:
        check_model(model, graph, prompts)
    ablated = ablated_activations(model, graph, prompts, ablation)
    return Experiment(model, graph, prompts, metric, ablation, ablated, workers, gates)


class CannotDoTask(ValueError):
    """The model does not show the behaviour, so that there is no circuit to look for."""


def check_does_task(experiment: Experiment, *, least_gap: float = 0.05) -> None:
    """Refuses a model that does not do the task: its faithfulness would be a ratio of noises.

    The gap between the whole and the ablated model must exceed twice its standard error over
    prompts, and `least_gap` in the units of the metric.

    Raises:
        CannotDoTask: the gap is too small.
    """
    gaps = experiment.full - experiment.empty
    gap = gaps.mean().item()
    error = gaps.std().item() / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    if gap < max(least_gap, 2 * error):
        raise CannotDoTask(
            f"the model does not do the task: {experiment.metric} is "
            f"{experiment.full.mean():.3f} for the whole model and {experiment.empty.mean():.3f} "
            f"with everything ablated ({experiment.ablation}); the difference {gap:.3f} "
            f"(standard error {error:.3f}) is too small to look for a circuit"
        )
