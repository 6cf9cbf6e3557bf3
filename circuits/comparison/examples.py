"""A few prompts of a task to look at, with where each model's heads attend on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from circuits.models.load import tokenizer_of
from circuits.results.comparison import SIDES, AttentionExample
from circuits.results.discovery import Discovery
from circuits.tasks import Task, TaskPrompts

if TYPE_CHECKING:
    from circuits.models.backend import Model

N_EXAMPLES = 4


def attention_examples(
    models: Mapping[str, Model],
    task: Task,
    prompts: Mapping[str, TaskPrompts],
    found: Mapping[str, Discovery],
) -> tuple[AttentionExample, ...]:
    """Returns a few reporting prompts as each model reads them, the most usual one first.

    Args:
        models: The models, by name; all of one tokenizer.
        task: The behaviour.
        prompts: The same prompts for each.
        found: What was found in each.
    """
    templates = next(iter(prompts.values())).reporting.templates
    return tuple(_example(models, task, prompts, row) for row in _shown_rows(templates, found))


def _shown_rows(templates: Sequence[str], found: Mapping[str, Discovery]) -> list[int]:
    """A few prompts, the most usual one first, of as many templates as there are."""
    usual = _usual_template(found)
    firsts = [row for row, name in enumerate(templates) if name not in templates[:row]]
    firsts.sort(key=lambda row: templates[row] != usual)
    others = [row for row in range(len(templates)) if row not in firsts]
    return [*firsts, *others][:N_EXAMPLES]


def _usual_template(found: Mapping[str, Discovery]) -> str | None:
    """The template whose ratio of attention edges, dense / sparse, is nearest the mean sizes'.

    None where attention edges were not looked for, or no template needs some in both models.
    """
    if any("attention_edge" not in found[side].found for side in SIDES):
        return None
    dense, sparse = (found[side].found["attention_edge"] for side in SIDES)
    ratios = {
        template: math.log(size / sparse.template_sizes[template])
        for template, size in dense.template_sizes.items()
        if size > 0 and sparse.template_sizes.get(template, 0) > 0
    }
    if not ratios or not (dense.size > 0 and sparse.size > 0):
        return None
    mean = math.log(dense.size / sparse.size)
    return min(ratios, key=lambda template: abs(ratios[template] - mean))


@torch.no_grad()
def _example(
    models: Mapping[str, Model], task: Task, prompts: Mapping[str, TaskPrompts], row: int
) -> AttentionExample:
    """One reporting prompt and where each model's heads attend on it."""
    patterns: dict[str, list[list[list[list[float]]]]] = {}
    for side, model in models.items():
        one = prompts[side].reporting.subset([row])
        length = int(one.lengths[0])
        tokens = one.clean[:, :length].to(model.W_E.device)
        _, cache = model.run_with_cache(tokens, names_filter=lambda n: n.endswith("hook_pattern"))
        patterns[side] = [
            cache[f"blocks.{layer}.attn.hook_pattern"][0].float().cpu().tolist()
            for layer in range(model.cfg.n_layers)
        ]
    first = next(iter(models))
    shown, tokenizer = prompts[first].reporting.subset([row]), tokenizer_of(models[first])
    length = int(shown.lengths[0])
    clean, corrupted = (
        tuple(str(tokenizer.decode([i])) for i in ids[0, :length].tolist())
        for ids in (shown.clean, shown.corrupted)
    )
    return AttentionExample(
        task=task.name,
        template=shown.templates[0],
        clean=clean,
        corrupted=corrupted,
        answer=str(tokenizer.decode([int(shown.answers[0, 0])])),
        patterns=patterns,
    )
