"""Transformers whose circuit is known: their weights are written by hand.

A method that looks for circuits should find these, edge for edge. Each model has a space of its
own in the residual stream for everything its circuit says, and one more, `junk`, that nothing of
the circuit reads and the logits ignore. There the distractors write: heads and MLP neurons with
random weights that read everything, differ between clean and corrupted prompts, and do not matter.

The circuit holds the edges along which the difference of clean and corrupted prompts reaches the
metric. An edge that carries the same in both (a position, say) is not part of it.

They have no norms, which no model that a TransformerBridge wraps is without: they need
HookedTransformer, and so for transformer_lens<4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.models.load import new_model
from circuits.prompts import Prompts
from circuits.tasks.task import Task, TaskPrompts

if TYPE_CHECKING:
    from circuits.models.backend import Model

_SHARP = 12.0
"""Attention score of what a head looks for, against 0: nearly hard, and still differentiable."""


@dataclass(frozen=True)
class HandBuilt:
    """A model with its behaviour and its circuit.

    Attributes:
        model: The model. Its tokens have no names, so it has no tokenizer.
        task: The behaviour's name and metric, for `discover`.
        draw: Draws so many prompt pairs from a seed.
        nodes: The heads and MLPs of the circuit.
        edges: The edges of the circuit, in the order of the graph.
    """

    model: Model
    task: Task
    draw: Callable[[int, int], Prompts]
    nodes: tuple[str, ...]
    edges: tuple[str, ...]

    def prompts(self, n: int, seed: int = 0) -> TaskPrompts:
        """Returns `n` prompts each for ranking, sizing and reporting."""
        return TaskPrompts(*(self.draw(n, 3 * seed + number) for number in range(3)))


def induction(*, n_distractors: int = 2, n_tokens: int = 12) -> HandBuilt:
    """Returns a model that ends `x A B x D x A` with B, through two heads.

    a0.h0 writes every token's predecessor, a1.h0 looks for the current token among them and
    copies what it finds. The corrupted prompt lacks the first A, so only what makes the second
    head find it differs (Elhage et al. 2021; Olsson et al. 2022).
    """
    n_pos = 7
    tokens, positions, before, answer, junk = _spaces(n_tokens, n_pos, n_tokens, n_tokens, n_tokens)
    model = _blank_model(2, 1, n_distractors, junk, n_tokens, n_tokens, n_pos)
    one = torch.eye(n_tokens)
    with torch.no_grad():
        model.embed.W_E[:, tokens] = one
        model.pos_embed.W_pos[:, positions] = torch.eye(n_pos)
        model.unembed.W_U[answer] = one
        first, second = (block.attn for block in model.blocks)
        first.W_Q[0][positions, :n_pos] = _SHARP * torch.eye(n_pos).roll(1, 0)  # i looks for i - 1
        first.W_K[0][positions, :n_pos] = torch.eye(n_pos)
        first.W_V[0][tokens] = one
        first.W_O[0][:, before] = one
        second.W_Q[0][tokens] = 3 * one
        second.W_K[0][before] = one
        second.W_V[0][tokens] = one
        second.W_O[0][:, answer] = one

    def draw(n: int, seed: int) -> Prompts:
        drawn = _permutations(n, n_tokens, seed)
        clean = torch.cat([drawn[:, :6], drawn[:, 1:2]], dim=1)
        corrupted = clean.clone()
        corrupted[:, 1] = drawn[:, 6]
        return _prompts(clean, corrupted, clean[:, 2], clean[:, 4])

    return HandBuilt(
        model=model,
        task=_task("induction", "A B ... A is followed by B"),
        draw=draw,
        nodes=("a0.h0", "a1.h0"),
        edges=("input->a0.h0<v>", "a0.h0->a1.h0<k>", "a1.h0->logits"),
    )


def duplicate_token(*, n_distractors: int = 2, n_tokens: int = 12) -> HandBuilt:
    """Returns a model that says whether its last token stood in the prompt before.

    a0.h0 attends to tokens equal to the current one, itself among them, and reads whether they
    stand before the end: half of its attention does where there is a duplicate, else none. The
    first token of the vocabulary means yes, the second no. The corrupted prompt has another token
    in place of the first of the two, so the head's keys differ, and nothing else that matters.
    """
    n_pos, yes, no = 6, 0, 1
    tokens, earlier, said, junk = _spaces(n_tokens, 1, 1, n_tokens)
    model = _blank_model(2, 1, n_distractors, junk, n_tokens, n_tokens, n_pos)
    with torch.no_grad():
        model.embed.W_E[:, tokens] = torch.eye(n_tokens)
        model.pos_embed.W_pos[: n_pos - 1, earlier] = 1
        head = model.blocks[0].attn
        head.W_Q[0][tokens] = _SHARP * torch.eye(n_tokens)
        head.W_K[0][tokens] = torch.eye(n_tokens)
        head.W_V[0][earlier, 0] = 1
        head.W_O[0][0, said] = 1
        model.unembed.W_U[said, yes] = 4
        model.unembed.b_U[no] = 1

    def draw(n: int, seed: int) -> Prompts:
        drawn = 2 + _permutations(n, n_tokens - 2, seed)
        place = 1 + torch.arange(n) % (n_pos - 2)
        clean = drawn[:, :n_pos].clone()
        corrupted = clean.clone()
        clean[torch.arange(n), place] = clean[:, -1]
        answers = torch.full((n,), yes)
        return _prompts(clean, corrupted, answers, torch.full((n,), no))

    return HandBuilt(
        model=model,
        task=_task("duplicate_token", "whether the last token stood there before"),
        draw=draw,
        nodes=("a0.h0",),
        edges=("input->a0.h0<k>", "a0.h0->logits"),
    )


def gated_copy(*, n_distractors: int = 2, n_tokens: int = 8) -> HandBuilt:
    """Returns a model that repeats the token at position 1 if a gate token stands at position 3.

    a0.h0 copies the token, a0.h1 says whether the gate is open, and m0 passes the token on where
    both hold: neuron k is relu(copied k + open - 1). The corrupted prompt has another token and a
    closed gate, so both inputs of the MLP carry the behaviour, and each alone is not enough.
    """
    n_pos, copy_at, gate_at = 6, 1, 3
    opened, closed = n_tokens, n_tokens + 1
    content, gate, positions, copied, is_open, answer, junk = _spaces(
        n_tokens, 1, n_pos, n_tokens, 1, n_tokens, n_tokens
    )
    model = _blank_model(
        2, 2, n_distractors, junk, n_tokens, n_tokens + 2, n_pos, n_neurons=2 * n_tokens
    )
    one = torch.eye(n_tokens)
    with torch.no_grad():
        model.embed.W_E[:n_tokens, content] = one
        model.embed.W_E[opened, gate] = 1
        model.pos_embed.W_pos[:, positions] = torch.eye(n_pos)
        model.unembed.W_U[answer, :n_tokens] = one
        heads = model.blocks[0].attn
        mlp: Any = model.blocks[0].mlp
        for head, place in ((0, copy_at), (1, gate_at)):
            heads.W_Q[head][positions, 0] = _SHARP
            heads.W_K[head][positions[place], 0] = 1
        heads.W_V[0][content] = one
        heads.W_O[0][:, copied] = one
        heads.W_V[1][gate, 0] = 1
        heads.W_O[1][0, is_open] = 1
        mlp.W_in[:, :n_tokens] = 0
        mlp.W_in[copied, :n_tokens] = one
        mlp.W_in[is_open, :n_tokens] = 1
        mlp.b_in[:n_tokens] = -1
        mlp.W_out[:n_tokens] = 0
        mlp.W_out[:n_tokens, answer] = one

    def draw(n: int, seed: int) -> Prompts:
        drawn = _permutations(n, n_tokens, seed)
        clean = drawn[:, :n_pos].clone()
        clean[:, gate_at] = opened
        corrupted = clean.clone()
        corrupted[:, copy_at] = drawn[:, n_pos]
        corrupted[:, gate_at] = closed
        return _prompts(clean, corrupted, clean[:, copy_at], corrupted[:, copy_at])

    return HandBuilt(
        model=model,
        task=_task("gated_copy", "repeats a token where a gate is open"),
        draw=draw,
        nodes=("a0.h0", "a0.h1", "m0"),
        edges=("input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits"),
    )


HAND_BUILT: dict[str, Callable[[], HandBuilt]] = {
    "induction": induction,
    "duplicate_token": duplicate_token,
    "gated_copy": gated_copy,
}
"""The models by name."""


def _spaces(*widths: int) -> list[Tensor]:
    """Dimensions of the residual stream, handed out one after the other."""
    return list(torch.arange(sum(widths)).split(list(widths)))


def _blank_model(
    n_layers: int,
    n_blank: int,
    n_distractors: int,
    junk: Tensor,
    d_head: int,
    n_tokens: int,
    n_pos: int,
    *,
    n_neurons: int | None = None,
) -> Model:
    """A model of distractors: random heads and neurons that read everything and write to `junk`.

    The first `n_blank` heads of each layer are left for the circuit.
    """
    d_model = int(junk[-1]) + 1
    config = {
        "n_layers": n_layers,
        "n_heads": n_blank + n_distractors,
        "d_model": d_model,
        "d_head": d_head,
        "d_mlp": n_neurons,
        "d_vocab": n_tokens,
        "n_ctx": n_pos,
        "attn_only": n_neurons is None,
        "act_fn": "relu",
        "normalization_type": None,
        "use_attn_scale": False,
        "device": "cpu",
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = new_model(config)
        for parameter in model.parameters():
            parameter.zero_()
        for block in model.blocks:
            for head in range(n_blank, n_blank + n_distractors):
                block.attn.W_Q[head].normal_(std=0.3)
                block.attn.W_K[head].normal_(std=0.3)
                block.attn.W_V[head].normal_()
                block.attn.W_O[head][:, junk] = torch.randn(d_head, len(junk))
            if n_neurons is not None:
                block.mlp.W_in.normal_()
                block.mlp.W_out[:, junk] = torch.randn(n_neurons, len(junk))
    return model


def _permutations(n: int, n_tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n_tokens, generator=generator) for _ in range(n)])


def _prompts(clean: Tensor, corrupted: Tensor, answers: Tensor, wrong_answers: Tensor) -> Prompts:
    return Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((len(clean),), clean.shape[1]),
        answers=answers[:, None],
        wrong_answers=wrong_answers[:, None],
        templates=("hand-built",) * len(clean),
    )


def _task(name: str, description: str) -> Task:
    def no_text(_tokenizer: object, _n: int, _seed: int) -> list:
        raise ValueError(f"{name} has no text; pass `prompts=` of the hand-built model")

    return Task(name, description, "logit_diff", no_text)
