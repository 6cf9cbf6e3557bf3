"""What a step of post-training descends, and its gradient: computed part by part of the batch.

Under a gate the loss is that of circuits/sparsify/loss.py: the penalty on open edges, and lambda
times how far the model is from its bound. Without one (a control) it is the fidelity alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.gate.density import OpenEdges, record_open_edges
from circuits.gate.fused import fused_attention
from circuits.sparsify.compiled import compile_parts, compiled
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.cuda_graph import GradientGraph
from circuits.sparsify.loss import cross_entropy, distillation_loss, edge_penalty
from circuits.sparsify.plain_products import plain_products
from circuits.sparsify.recompute import recomputed_blocks
from circuits.workers import Workers


class OfBatch(NamedTuple):
    """Numbers of the batch whose gradient was computed."""

    loss: float
    ce: float
    expected: float
    allowed: float


class Objective:
    """The loss of one model, and its gradient with respect to the weights that are trained."""

    def __init__(
        self,
        model: Any,
        teacher: Any | None,
        weights: Mapping[str, Tensor],
        config: TrainConfig,
        limit: float,
        attention: str,
        workers: Workers,
        *,
        is_sharded: bool,
    ) -> None:
        """Computes nothing yet.

        Args:
            model: what is trained, with its gate.
            teacher: the dense model, where the loss holds a divergence from it.
            weights: the parameters that are trained, by name.
            config: the run's.
            limit: the bound of the CE or the KL.
            attention: the path that attention takes, as `fused_attention` has it.
            workers: who shares the batch.
            is_sharded: whether the model's weights are shared out among the workers.
        """
        self.model, self.teacher, self.weights = model, teacher, weights
        self.config, self.limit, self.attention = config, limit, attention
        self.workers, self.is_sharded = workers, is_sharded
        self.device = model.W_E.device
        self._by_kl = config.gate and config.bound == "kl"
        # A tensor, which a recorded CUDA graph reads anew each time.
        self.price = torch.tensor(config.lambda_start, device=self.device)
        self._compiled = compile_parts(model) if config.compile else []
        self._graph: GradientGraph | None = None

    def add_gradient(
        self,
        tokens: Int[Tensor, "batch pos"],
        price: float,
        noise_seed: Callable[[int], int],
    ) -> OfBatch:
        """Adds the gradient of the mean loss of a batch to the weights.

        Args:
            tokens: the whole batch; each worker computes its own parts of it.
            price: lambda.
            noise_seed: gives the seed of the random numbers of a part, by the part's number.
        """
        parts = list(tokens.chunk(self.config.accumulate * self.workers.count))
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.price.fill_(price)
        with self.fast(), compiled(self._compiled):
            for number, rows in self.workers.own(parts):
                backward = self._part(rows, len(parts))
                torch.manual_seed(noise_seed(number))
                sums += backward(rows)
        self.workers.add_up([sums])
        if not self.is_sharded:  # a sharded model's gradients are sums already
            self.workers.add_up(p.grad for p in self.weights.values() if p.grad is not None)
        loss, ce, expected, allowed = sums.tolist()
        return OfBatch(loss, ce / len(parts), expected, allowed)

    def _part(
        self, tokens: Int[Tensor, "batch pos"], n_parts: int
    ) -> Callable[[Int[Tensor, "batch pos"]], Float[Tensor, 4]]:
        """What adds the gradient of a part of the batch, as `backward` does."""
        compute = partial(self.backward, n_parts=n_parts)
        if not self.config.cuda_graph:
            return compute
        if self._graph is None:
            self._graph = GradientGraph(compute, self.weights.values(), tokens)
        return self._graph

    def backward(self, tokens: Int[Tensor, "batch pos"], n_parts: int) -> Float[Tensor, 4]:
        """Adds the gradient of a part of the batch.

        Returns its loss, CE, and expected and allowed edges.
        """
        config = self.config
        recorded = record_open_edges(self.model) if config.gate else nullcontext()
        with (
            self._autocast(),
            # Else the graph would hold weights whole: rearranged, cast, or with updates added.
            recomputed_blocks(self.model, enabled=config.recompute or self.is_sharded),
            recorded as edges,
        ):
            logits = self.model(tokens)
        # A bounded KL leaves CE out of the loss: its gradient would be a third copy of the logits.
        ce = cross_entropy(logits.detach() if self._by_kl else logits, tokens)
        fidelity = config.ce_weight * ce
        if self.teacher is not None:
            with torch.no_grad(), self._autocast():
                teacher_logits = self.teacher(tokens)
            divergence = distillation_loss(logits, teacher_logits)
            fidelity = divergence if self._by_kl else fidelity + config.distillation * divergence
        loss = self._loss(fidelity, edges)
        (loss / n_parts).backward()
        counts = (edges.expected.sum(), edges.allowed.sum()) if edges else ce.new_zeros(2)
        return torch.stack([number.double() for number in (loss, ce, *counts)]).detach()

    def _loss(self, fidelity: Float[Tensor, ""], edges: OpenEdges | None) -> Float[Tensor, ""]:
        """What a step descends: under a gate edges and lambda, for a control the fidelity alone."""
        if edges is None:
            return fidelity
        penalty = edge_penalty(edges.expected, edges.allowed, self.config.penalty)
        return self.config.edge_weight * penalty + self.price * (fidelity - self.limit)

    @contextmanager
    def fast(self) -> Iterator[None]:
        """Computes attention, and products with frozen weights, in the fastest ways."""
        with ExitStack() as stack:
            stack.enter_context(fused_attention(self.model, self.attention))
            if not self.is_sharded:  # what is sharded or compiled has forwards of its own
                if self.config.lora_rank and not self._compiled:
                    stack.enter_context(plain_products(self.model))
                if self.teacher is not None:
                    stack.enter_context(plain_products(self.teacher))
            yield

    def _autocast(self) -> torch.autocast:
        half = self.config.precision == "bfloat16"
        # The cache holds every weight in half precision until the context ends.
        cached = not self.is_sharded
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=cached)
