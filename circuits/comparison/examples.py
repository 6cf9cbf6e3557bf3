"""A few prompts of a task to look at, with where each model's heads attend on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from circuits.models.load import tokenizer_of
from circuits.results.comparison import AttentionExample
from circuits.results.discovery import Discovery
from circuits.tasks import Task, TaskPrompts

if TYPE_CHECKING:
    from circuits.models.backend import Model

N_EXAMPLES = 4


def attention_examples(
    models: Mapping[str, Model],
    task: Task,
    prompts: Mapping[str, TaskPrompts],
    discoveries: Mapping[str, Discovery],
) -> tuple[AttentionExample, ...]:
    """Returns a few reporting prompts as each model reads them, the most usual one first.

    Args:
        models: One model or two, by name; of one tokenizer.
        task: The behaviour.
        prompts: The same prompts for each.
        discoveries: What was found in each.
    """
    templates = next(iter(prompts.values())).reporting.templates
    return tuple(
        _example(models, task, prompts, row) for row in _shown_rows(templates, discoveries)
    )


def _shown_rows(templates: Sequence[str], discoveries: Mapping[str, Discovery]) -> list[int]:
    """A few prompts, the most usual one first, of as many templates as there are."""
    usual = _usual_template(discoveries)
    firsts = [row for row, name in enumerate(templates) if name not in templates[:row]]
    firsts.sort(key=lambda row: templates[row] != usual)
    others = [row for row in range(len(templates)) if row not in firsts]
    return [*firsts, *others][:N_EXAMPLES]


def _usual_template(discoveries: Mapping[str, Discovery]) -> str | None:
    """The template whose size of attention edges, or ratio of both sizes, is nearest the mean's.

    None where attention edges were not looked for, or no template needs some in every model.
    """
    if any("attention_edge" not in discovery.circuits for discovery in discoveries.values()):
        return None
    edges = [discovery.circuits["attention_edge"] for discovery in discoveries.values()]
    templates = [
        template
        for template in edges[0].template_sizes
        if all(evidence.template_sizes.get(template, 0) > 0 for evidence in edges)
    ]
    if not templates or any(evidence.size <= 0 for evidence in edges):
        return None

    def compared(sizes: Sequence[float]) -> float:
        """The logarithm of the size, or of the first size over the second."""
        return math.log(sizes[0]) - sum(map(math.log, sizes[1:]))

    mean = compared([evidence.size for evidence in edges])
    return min(
        templates,
        key=lambda name: abs(
            compared([evidence.template_sizes[name] for evidence in edges]) - mean
        ),
    )


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
