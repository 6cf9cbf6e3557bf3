"""What the heads do, by the field's definitions, and which head of the twin does the same.

Each head is measured on two kinds of text.

On random tokens that come twice (Olsson et al. 2022, arXiv 2209.11895): how much a token attends
to the one before it (previous-token heads), to its own first occurrence (duplicate-token heads)
and to what followed that occurrence (induction heads).

On the clean prompts of a task, from the last position, where the answer is read: how much it
attends to an earlier mention of the answer, and to the tokens that the corrupted prompt changes.
Under IOI (Wang et al. 2022, arXiv 2211.00593) the first are the name movers, and the changed token
is the subject's second mention, which S-inhibition heads read; under greater-than (Hanna et al.
2023, arXiv 2305.00586) it is the start year. `direct` is what the head itself writes into the
difference between the answers' logits and the others'.

Attention is what is left after the gate: a sparse head that is shut attends to nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.intervene.behind_heads import heads_total, norm_of
from circuits.models.anatomy import norm_gain, subtracts_mean
from circuits.models.backend import Model
from circuits.prompts import NO_ANSWER, Prompts
from circuits.results.roles import HeadRole

THRESHOLD = 0.3
"""Mean attention from which a head is said to have a role."""
N_SEQUENCES, REPEATED, N_PROMPTS = 16, 24, 32

Scores = dict[str, Tensor | None]
"""A number for each head, by what was measured; None where the prompts do not allow it."""


def head_roles(
    models: Mapping[str, Model],
    prompts: Mapping[str, Prompts],
    circuits: Mapping[str, Collection[str]],
    task: str,
    *,
    seed: int = 0,
) -> tuple[HeadRole, ...]:
    """Returns the role of every head of one model, or of two of one tokenizer, on one task.

    Args:
        models: One model or two, by name; the heads of two are matched.
        prompts: Held-out prompts for each; the same ones.
        circuits: The names of the heads in each model's circuit.
        task: The task's name.
        seed: Of the random tokens.

    Raises:
        ValueError: there are more than two models, their prompts are not the same tokens, or what
            a head attends to is not finite.
    """
    if len(models) > 2:
        raise ValueError(f"heads are matched between two models; got {', '.join(models)}")
    tokens = [prompts[name].clean for name in models]
    if any(not torch.equal(tokens[0], other) for other in tokens[1:]):
        raise ValueError(
            f"the prompts of {' and '.join(models)} are not the same tokens, so their heads' "
            "attention cannot be matched; give models of one tokenizer the same prompts"
        )
    measured: dict[str, Scores] = {}
    patterns = {}
    for name, model in models.items():
        asked = prompts[name].subset(range(min(N_PROMPTS, len(prompts[name]))))
        scores, patterns[name] = _on_prompts(model, asked)
        measured[name] = _on_repeated_tokens(model, seed) | scores
        _check_finite(name, model.cfg.n_heads, measured[name])
    roles = []
    for name, other in zip(models, reversed(list(models)), strict=True):
        twins: list[tuple[str, float | None]] = [("", None)] * len(patterns[name])
        if other != name:
            twins = _most_similar(patterns[name], patterns[other], models[other].cfg.n_heads)
        for row, (twin, similarity) in enumerate(twins):
            head = _name(row, models[name].cfg.n_heads)
            values: dict[str, Any] = {
                key: None if scores is None else scores[row].item()
                for key, scores in measured[name].items()
            }
            roles.append(
                HeadRole(
                    task=task,
                    model=name,
                    head=head,
                    in_circuit=head in circuits[name],
                    **values,
                    role=_role(values),
                    twin=twin,
                    similarity=similarity,
                )
            )
    return tuple(roles)


def _name(row: int, n_heads: int) -> str:
    return f"a{row // n_heads}.h{row % n_heads}"


def _check_finite(model: str, n_heads: int, measured: Scores) -> None:
    for what, scores in measured.items():
        bad = [] if scores is None else (~torch.isfinite(scores)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"{model} model: {what} of {_name(bad[0], n_heads)} is not finite; "
                "look for NaN or infinity in the model's weights"
            )


def _role(scores: dict[str, Any]) -> str:
    attention = {name: value or 0.0 for name, value in scores.items() if name != "direct"}
    strongest = max(attention, key=lambda name: attention[name])
    if attention[strongest] < THRESHOLD:
        return ""
    if strongest == "to_answer":
        return "name_mover" if scores["direct"] > 0 else "negative_name_mover"
    return "changed_token" if strongest == "to_changed" else strongest


@torch.no_grad()
def _patterns(
    model: Model, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "head batch query_pos key_pos"]:
    """Attention after the gate of all heads, layer by layer."""
    _, cache = model.run_with_cache(
        tokens.to(model.W_E.device), names_filter=lambda name: name.endswith("attn.hook_pattern")
    )
    layers = [
        cache[f"blocks.{layer}.attn.hook_pattern"].float().cpu()
        for layer in range(model.cfg.n_layers)
    ]
    return torch.cat([layer.transpose(0, 1) for layer in layers])


def _on_repeated_tokens(model: Model, seed: int) -> dict[str, Float[Tensor, " head"]]:
    generator = torch.Generator().manual_seed(seed)
    length = min(REPEATED, (model.cfg.n_ctx - 1) // 2)
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    usable = torch.tensor([i for i in range(model.cfg.d_vocab) if i not in special])
    # No token comes twice within a half.
    halves = [usable[torch.randperm(len(usable), generator=generator)] for _ in range(N_SEQUENCES)]
    half = torch.stack(halves)[:, :length]
    length = half.shape[1]
    start = getattr(model.tokenizer, "bos_token_id", None)
    first = torch.full((N_SEQUENCES, 1), 0 if start is None else start)
    pattern = _patterns(model, torch.cat([first, half, half], dim=1))
    second = torch.arange(length + 1, 2 * length + 1)
    everywhere = torch.arange(1, 2 * length + 1)

    def mean_to(queries: Tensor, back: int) -> Float[Tensor, " head"]:
        return pattern[:, :, queries, queries - back].mean(dim=(1, 2))

    return {
        "previous_token": mean_to(everywhere, 1),
        "duplicate_token": mean_to(second, length),
        "induction": mean_to(second, length - 1),
    }


def _on_prompts(model: Model, prompts: Prompts) -> tuple[Scores, Float[Tensor, "head entries"]]:
    """The scores of a task, and each head's attention on its prompts in a row."""
    pattern = _patterns(model, prompts.clean)
    rows = torch.arange(len(prompts))
    positions = torch.arange(prompts.clean.shape[1])
    real = positions <= prompts.last[:, None]  # [batch, pos]
    from_last = pattern[:, rows, prompts.last]  # [head, batch, key_pos]

    def mean_to(marked: Bool[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
        return (from_last * marked).sum(dim=2).mean(dim=1)

    answer = (prompts.clean == prompts.answers[:, :1]) & real
    has_answer = bool(answer.any(dim=1).all()) and prompts.answers.shape[1] == 1
    scores: Scores = {
        "to_answer": mean_to(answer) if has_answer else None,
        "to_changed": mean_to((prompts.clean != prompts.corrupted) & real),
        "direct": _direct(model, prompts),
    }
    return scores, (pattern * real[:, :, None]).flatten(1)


@torch.no_grad()
def _direct(model: Model, prompts: Prompts) -> Float[Tensor, " head"]:
    """What each head adds to the answers' mean logit minus the wrong answers', in logits.

    The final norm is taken as it is in the run, and so is a norm behind heads: its scale counts as
    a constant.
    """
    device = model.W_E.device
    names = ("attn.hook_z", "ln_final.hook_scale")
    _, cache = model.run_with_cache(
        prompts.clean.to(device), names_filter=lambda name: name.endswith(names)
    )
    rows, last = torch.arange(len(prompts)), prompts.last
    unembedding = model.W_U.float()  # [d_model, d_vocab]
    towards = _mean_column(unembedding, prompts.answers) - _mean_column(
        unembedding, prompts.wrong_answers
    )
    gain = norm_gain(model.cfg, getattr(model, "ln_final", None))
    if gain is not None:
        towards = towards * gain.float()
    if subtracts_mean(model.cfg):
        towards = towards - towards.mean(dim=1, keepdim=True)
    if "ln_final.hook_scale" in cache:
        towards = towards / cache["ln_final.hook_scale"][rows, last].float()
    written = []
    for layer in range(model.cfg.n_layers):
        z = cache[f"blocks.{layer}.attn.hook_z"][rows, last]  # [batch, head, d_head]
        norm, behind = norm_of(model, layer), towards[:, None]
        if norm is not None:
            behind = norm.backwards_at_scale(heads_total(model, layer, z[:, None]), behind)
        w_o = model.W_O[layer].float()
        written.append(torch.einsum("bhe,hed,bd->h", z.float(), w_o, behind[:, 0].float()))
    return torch.cat(written).cpu() / len(prompts)


def _mean_column(
    unembedding: Float[Tensor, "d_model d_vocab"], tokens: Int[Tensor, "batch n"]
) -> Float[Tensor, "batch d_model"]:
    present = (tokens != NO_ANSWER).to(unembedding.device)
    columns = unembedding.T[tokens.clamp(min=0).to(unembedding.device)]  # [batch, n, d_model]
    return (columns * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True)


def _most_similar(
    one: Float[Tensor, "head entries"], other: Float[Tensor, "twin entries"], width: int
) -> list[tuple[str, float | None]]:
    """For each head the one of the other model, with so many a layer, of the greatest cosine.

    A head that attends to nothing has a cosine of 0 with all.
    """
    unit, others = (torch.nn.functional.normalize(patterns, dim=1) for patterns in (one, other))
    cosines, twins = (unit @ others.T).max(dim=1)
    return [
        (_name(twin, width), cosine)
        for twin, cosine in zip(twins.tolist(), cosines.tolist(), strict=True)
    ]
