"""A start for post-training: each layer's attention by itself, on the dense model's own stream.

With b = 0 about half of the edges are open at first, and every layer reads what all layers before
it have spoilt: a large model then spends most of its steps on finding back to what it computed.
Here a layer reads the dense model's residual stream r, and learns to write what the dense layer's
attention writes, t, through few open edges:

    loss of a layer = open edges / allowed edges + price * KL
    KL = mean over positions of 1/2 (o - t)' F (o - t) / w^2,      w = rms(r + t)

o is what the sparse layer writes. F is the Fisher information of what the layer's attention writes,
E[g g'] with g = w dL/dt, L the log-likelihood of a text whose next tokens are drawn from the dense
model's own predictions (Amari 1998, Natural Gradient Works Efficiently in Learning). To second
order, and without terms between two positions, KL is the divergence KL(dense || sparse) in nats a
token that this layer's error alone brings about. Being in nats it serves all layers at one price:
what is open in the end lies where it saves most.

Layers do not depend on each other, so each is trained once and saved; what they bring about
together, the steps after that repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.gate.density import OpenEdges
from circuits.gate.gate import gates
from circuits.models.backend import Hooks, attention_layers, backend_of
from circuits.progress import shown_steps
from circuits.seeds import number_of
from circuits.sparsify.checkpoint import (
    DamagedCheckpointError,
    layer_path,
    load_checkpoint,
    save_checkpoint,
)
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.stopping import StopRequest, TrainingInterrupted
from circuits.sparsify.trained_weights import set_weights, tensors_of, trained_weights

if TYPE_CHECKING:
    from circuits.models.backend import Model

FISHER_SEQUENCES = 48
"""Sequences that the Fisher information is measured on, at most."""
_RIDGE = 0.1  # of F's mean eigenvalue: with few sequences F misses directions that matter
_SAMPLED = 0.7  # of a layer's steps; in the rest the gate decides as it will in the end
_WARM_UP, _LAST_RATE = 15, 0.03  # steps; the last learning rate as a part of the first
_BETAS = (0.9, 0.99)
_TOKENS_AT_ONCE = 2**13


@dataclass(frozen=True)
class LayerText:
    """What layers are trained on: some sequences, and what the dense model makes of them.

    Attributes:
        tokens: the sequences.
        fisher: F of each layer.
    """

    tokens: Int[Tensor, "sequence pos"]
    fisher: Float[Tensor, "layer d_model d_model"]


@dataclass(frozen=True)
class LayerResult:
    """What one layer came to, with the deterministic gate, on the sequences it was trained on.

    Attributes:
        kl: nats a token that its error alone costs, as estimated by F.
        density: open edges over allowed ones.
    """

    kl: float
    density: float


def fisher_information(
    dense: Model, tokens: Int[Tensor, "sequence pos"], *, seed: int = 0, at_once: int = 4
) -> Float[Tensor, "layer d_model d_model"]:
    """Returns F of every layer: the mean over sequences and positions of g g', see above.

    Half its quadratic form is the divergence in nats a token of an error of the size 1 / w.

    Args:
        dense: a dense model; only what its attention writes gets a gradient.
        tokens: sequences to measure on.
        seed: of the next tokens that are drawn.
        at_once: sequences in a forward pass.
    """
    n_layers, width = dense.cfg.n_layers, dense.cfg.d_model
    device = dense.W_E.device
    total = torch.zeros(n_layers, width, width, dtype=torch.float64, device=device)
    generator = torch.Generator(device).manual_seed(number_of(f"{seed}/fisher"))
    was_training = dense.training
    dense.eval()
    try:
        for rows in tokens.split(at_once):
            with torch.enable_grad(), _written(dense) as (read, written):
                logits = dense(rows.to(device)).float()
                flat = logits.detach().flatten(0, 1).softmax(dim=-1)
                drawn = torch.multinomial(flat, 1, generator=generator)
                chosen = logits.flatten(0, 1).log_softmax(dim=-1).gather(1, drawn).sum()
                gradients = torch.autograd.grad(chosen, [written[at] for at in range(n_layers)])
            for layer, gradient in enumerate(gradients):
                scale = _scale(read[layer], written[layer].detach())
                scored = (gradient * scale).flatten(0, 1).float()
                total[layer] += scored.T @ scored
    finally:
        dense.train(was_training)
        backend_of(dense).forget_activations(dense)
    return (total / tokens.numel()).float()


@contextmanager
def _written(dense: Model) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Yields what layers read and what their attention writes in a run, by layer, with graph."""
    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}

    def keep_read(act: Tensor, hook: Any) -> None:
        read[hook.layer()] = act.detach()

    def keep_written(act: Tensor, hook: Any) -> Tensor:
        # Of a model whose weights are all frozen there is no graph before this.
        kept = act if act.requires_grad else act.requires_grad_()
        written[hook.layer()] = kept
        return kept

    numbers = range(dense.cfg.n_layers)
    hooks: Hooks = [
        *((f"blocks.{layer}.hook_resid_pre", keep_read) for layer in numbers),
        *((f"blocks.{layer}.hook_attn_out", keep_written) for layer in numbers),
    ]
    with dense.hooks(fwd_hooks=hooks):
        yield read, written


def _scale(read: Tensor, written: Tensor) -> Float[Tensor, "sequence pos 1"]:
    """w: the stream's root mean square behind the attention. The next norm divides by it."""
    return (read + written).square().mean(dim=-1, keepdim=True).sqrt()


class LayerStart:
    """Trains the attention of one layer after the other, from the first on."""

    def __init__(self, model: Model, dense: Model, text: LayerText, config: TrainConfig) -> None:
        """Takes a gated model, whose weights that are to be trained require gradients."""
        self._model, self._dense, self._text, self._config = model, dense, text, config
        self._stream = self._embedded()
        self._layer = 0

    @property
    def layer(self) -> int:
        """The layer whose turn it is."""
        return self._layer

    def weights(self, layer: int) -> dict[str, nn.Parameter]:
        """Returns what is trained of a layer, by name."""
        return trained_weights(attention_layers(self._model)[layer])

    def train(self, on_step: Callable[[], None]) -> LayerResult:
        """Trains the layer whose turn it is; `on_step` is called after every step.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        config, layer = self._config, self._layer
        weights = list(self.weights(layer).values())
        optimizer = torch.optim.AdamW(
            weights, lr=config.layer_learning_rate, betas=_BETAS, weight_decay=0.0
        )
        target = self._of_dense(backend_of(self._dense).run_attention)
        goal = _Goal(self._stream, target, self._text.fisher[layer])
        gate, steps = gates(self._model)[layer], config.layer_steps
        try:
            for step in range(steps):
                gate.training = step < _SAMPLED * steps
                for group in optimizer.param_groups:
                    group["lr"] = config.layer_learning_rate * _rate_at(step, steps)
                torch.manual_seed(number_of(f"{config.seed}/layer/{layer}/{step}"))
                rows = torch.randint(len(self._stream), (config.batch_size,))
                expected, counts, written = self._run(rows)
                kl = goal.kl(rows, written)
                loss = expected.sum() / counts[1].sum() + config.layer_price * kl
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss of layer {layer} by itself is {loss.item()} at its step "
                        f"{step + 1}; lower layer_learning_rate (now {config.layer_learning_rate})"
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, config.grad_clip)
                optimizer.step()
                on_step()
            gate.training = False
            return self._measure(goal)
        finally:
            gate.training = False
            for weight in weights:
                weight.grad = None

    def go_on(self) -> None:
        """Takes the dense model's stream to the next layer."""
        self._stream = self._of_dense(backend_of(self._dense).run_layer)
        self._layer += 1

    @torch.no_grad()
    def _embedded(self) -> Float[Tensor, "sequence pos d_model"]:
        """The stream before the first layer."""
        kept: list[Tensor] = []

        def keep(act: Tensor, hook: Any) -> None:
            kept.append(act)

        with self._dense.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", keep)]):
            for (tokens,) in self._parts(self._text.tokens):
                self._dense(tokens, stop_at_layer=1)
        return torch.cat(kept)

    @torch.no_grad()
    def _of_dense(self, run: Callable[..., Tensor]) -> Float[Tensor, "sequence pos d_model"]:
        """What a part of the dense model makes of the stream before the layer."""
        parts = self._parts(self._text.tokens, self._stream)
        return torch.cat([run(self._dense, tokens, self._layer, read) for tokens, read in parts])

    def _run(self, rows: Tensor) -> tuple[Float[Tensor, " head"], Int[Tensor, "2 head"], Tensor]:
        """Expected open edges, counts of open and allowed ones, and what is written."""
        edges = OpenEdges(self._model.cfg.n_layers)
        gate = gates(self._model)[self._layer]
        gate.recorder = edges
        try:
            run = backend_of(self._model).run_attention
            written = run(self._model, self._text.tokens[rows], self._layer, self._stream[rows])
        finally:
            gate.recorder = None
        return *edges.of_layer(self._layer), written

    @torch.no_grad()
    def _measure(self, goal: _Goal) -> LayerResult:
        kl, n_open, n_allowed = 0.0, 0, 0
        numbers = torch.arange(len(self._stream))
        for (rows,) in self._parts(numbers):
            _, counts, written = self._run(rows)
            kl += goal.kl(rows, written).item() * len(rows)
            n_open += int(counts[0].sum())
            n_allowed += int(counts[1].sum())
        return LayerResult(kl / len(numbers), n_open / n_allowed)

    def _parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        at_once = max(1, _TOKENS_AT_ONCE // self._text.tokens.shape[1])
        yield from zip(*(tensor.split(at_once) for tensor in tensors), strict=True)


class _Goal:
    """What a layer is to write, and what it costs to write something else."""

    def __init__(self, read: Tensor, target: Tensor, fisher: Tensor) -> None:
        self._target, self._scale = target, _scale(read, target)
        width = len(fisher)
        ridge = _RIDGE * fisher.diagonal().mean() * torch.eye(width, device=fisher.device)
        values, vectors = torch.linalg.eigh(((fisher + ridge) / 2).double())
        self._root = (vectors * values.clamp(min=0).sqrt()).to(target.dtype)

    def kl(self, rows: Tensor, written: Tensor) -> Float[Tensor, ""]:
        """1/2 (o - t)' F (o - t) / w^2, the mean over sequences and positions."""
        error = (written - self._target[rows]) / self._scale[rows]
        return (error @ self._root).square().sum(dim=-1).mean()


def _rate_at(step: int, steps: int) -> float:
    """The learning rate of a layer's step, as a part of the highest: up a few steps, then down."""
    return min(1.0, (step + 1) / _WARM_UP) * (1 - (1 - _LAST_RATE) * step / steps)


def start_layers(
    model: Model,
    dense: Model,
    stream: TokenStream,
    config: TrainConfig,
    checkpoints: Path,
    *,
    shown: bool,
    asked: StopRequest,
) -> list[LayerResult]:
    """Trains the attention of every layer by itself, in place, and returns what came of each.

    A layer that is done is saved in `checkpoints`, and taken from there when this is called again.

    Raises:
        TrainingInterrupted: a stop was asked for.
        FloatingPointError: a loss is not finite.
    """
    text = _text_of(dense, stream, config)
    start = LayerStart(model, dense, text, config)
    n_layers, results = model.cfg.n_layers, list[LayerResult]()
    model.eval()
    with shown_steps(n_layers * config.layer_steps, shown=shown) as steps:

        def on_step() -> None:
            steps(f"layer {start.layer} of {n_layers} by itself")
            if asked.signal:
                raise TrainingInterrupted(
                    f"stopped in layer {start.layer} of {n_layers}, each by itself; those before "
                    f"it are saved in {checkpoints}: to go on, call again with resume=True "
                    "(--resume)",
                    asked.signal,
                )

        for layer in range(n_layers):
            result = _load_layer(start.weights(layer), layer_path(checkpoints, layer))
            if result is None:
                result = start.train(on_step)
                _save_layer(start.weights(layer), layer_path(checkpoints, layer), result)
            else:
                steps.begin_at((layer + 1) * config.layer_steps)
            results.append(result)
            if layer + 1 < n_layers:
                start.go_on()
    return results


def _text_of(dense: Model, stream: TokenStream, config: TrainConfig) -> LayerText:
    """The first training sequences, and F of every layer."""
    batches = range(-(-config.layer_sequences // config.batch_size))
    tokens = torch.cat([stream.batch(step, config.batch_size) for step in batches])
    tokens = tokens[: config.layer_sequences].to(dense.W_E.device)
    fisher = fisher_information(dense, tokens[:FISHER_SEQUENCES], seed=config.seed)
    return LayerText(tokens, fisher)


def _save_layer(weights: dict[str, nn.Parameter], path: Path, result: LayerResult) -> None:
    save_checkpoint(path, tensors_of(weights), asdict(result))


def _load_layer(weights: dict[str, nn.Parameter], path: Path) -> LayerResult | None:
    """Gives a layer the weights that were saved of it; None if there are none."""
    try:
        found = load_checkpoint(path)
    except DamagedCheckpointError:  # or absent; to train it again gives the same
        return None
    set_weights(weights, found.tensors)
    return LayerResult(**found.state)
