"""Gradients as a CUDA graph: a GPU takes one step after another without waiting for Python.

A step of a small model is tens of thousands of operations, each of which Python starts; a GPU is
through with most of them before the next has come. Here they are recorded once, and started again
together. The numbers are those of the step without a graph, operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from jaxtyping import Int
from torch import Tensor

_WARM_UP = 3  # runs in which libraries choose their kernels, as PyTorch's documentation asks for


class GradientGraph:
    """Computes the gradients of a batch as `compute` does, which Python runs only to record it.

    What `compute` reads besides its argument must lie where it lay when it was recorded, and what
    it returns is overwritten by the next call. Its random numbers are of the device's generator,
    from the seed that this has at each call.
    """

    def __init__(
        self,
        compute: Callable[[Int[Tensor, "batch pos"]], Tensor],
        weights: Collection[Tensor],
        tokens: Int[Tensor, "batch pos"],
    ) -> None:
        """Records `compute`, which adds the gradients of a batch to `weights`.

        Args:
            compute: returns numbers about the batch; must not wait for the GPU (`.item()`).
            weights: what has a gradient; the gradients that are there are lost.
            tokens: a batch, of the shape of all to come.

        Raises:
            ValueError: something in it cannot be recorded.
        """
        self._tokens, self._weights = tokens.clone(), list(weights)
        stream = torch.cuda.Stream(tokens.device)
        stream.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._forget()
                compute(self._tokens)
        torch.cuda.current_stream(tokens.device).wait_stream(stream)
        self._forget()
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self._found = compute(self._tokens)
        except RuntimeError as error:
            raise ValueError(
                "this model's step cannot be recorded as a CUDA graph; leave cuda_graph "
                f"(--cuda-graph) away: {str(error).partition(chr(10))[0]}"
            ) from error
        self._gradients = [weight.grad for weight in self._weights]

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Tensor:
        """Puts the gradients of a batch in place of those that are there."""
        self._tokens.copy_(tokens)
        self._graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return self._found

    def _forget(self) -> None:
        for weight in self._weights:
            weight.grad = None
